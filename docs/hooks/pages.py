"""MkDocs' hooks: adds the pages that come from elsewhere in the tree, and looks whether the site needs anything from elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import links
import reference

CHECKOUT = links.CHECKOUT
sys.path += [str(CHECKOUT / folder) for folder in ("module_utils", "client/src", "tests/unit")]

from mkdocs.config.defaults import MkDocsConfig  # noqa: E402
from mkdocs.exceptions import PluginError  # noqa: E402
from mkdocs.structure.files import File, Files  # noqa: E402
from mkdocs.structure.pages import Page  # noqa: E402

import ptolemy.__main__  # noqa: E402 - its path is known only now
import statuses  # noqa: E402 - of tests/unit: one service in use, so that every metric has a sample
from ptolemy import config as services_file  # noqa: E402
from ptolemy import exporter, site  # noqa: E402
from ptolemy_client import arguments  # noqa: E402


def _text(path: str) -> str:
    return (CHECKOUT / path).read_text(encoding="utf-8")


def _commands() -> str:
    both = [section for parser in (ptolemy.__main__.parser(), arguments.parser()) for section in reference.commands(parser)]
    return "\n".join(["# Commands\n", "`ptolemy` is on the gateway and on the compute nodes, `ptolemy-batch` on the login nodes.\n", *both])


def _services() -> str:
    return reference.services_page(services_file.Site, services_file.Service, services_file.Canary, site.SERVICE_KEYS)


def _metrics() -> str:
    return reference.metrics_page(exporter.metrics(statuses.seen(*statuses.BOTH)))


def generated() -> dict[str, str]:
    """Every page that no file of docs/ is, by its path in the site."""
    pages = {page: _text(source) for source, page in links.PAGES.items() if not source.startswith("roles/")}
    pages["changelog.md"] = reference.changelog(pages["changelog.md"], sorted((CHECKOUT / "changelogs" / "fragments").glob("*.yml")))
    for source, page in links.PAGES.items():
        if source.startswith("roles/"):
            pages[page] = reference.role_page((CHECKOUT / source).parent)
    pages["reference/modules.md"] = reference.modules_page(CHECKOUT / "library")
    pages["reference/commands.md"] = _commands()
    pages["reference/services-file.md"] = _services()
    pages["reference/metrics.md"] = _metrics()
    return pages


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the roles into the navigation, at the end of the reference."""
    roles = [{source.split("/")[1]: page} for source, page in links.PAGES.items() if source.startswith("roles/")]
    next(part["Reference"] for part in config.nav or [] if "Reference" in part).append({"Roles": roles})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add them."""
    for page, text in generated().items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Let links lead to where their files are in the site."""
    return links.moved(markdown, page.file.src_uri)


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a site that a browser without internet could not show whole."""
    for path in sorted(Path(config.site_dir).rglob("*")):
        if path.suffix not in (".html", ".css"):
            continue
        if found := links.fetched(path.read_text(encoding="utf-8")):
            raise PluginError(f"{path}: fetches something from elsewhere: {found}")
