"""The status page runs what HAProxy's policy lets in, and asks nobody else."""

from __future__ import annotations

import base64
import re
from hashlib import sha256
from pathlib import Path

import pytest
import yaml

ROLE = Path(__file__).parents[2] / "roles" / "haproxy"
PAGE = (ROLE / "files" / "status.html").read_text()
POLICY = yaml.safe_load((ROLE / "vars" / "main.yml").read_text())["__haproxy_status_policy"]


@pytest.mark.parametrize("tag", ["script", "style"])
def test_the_policy_lets_the_pages_own_script_and_style_in_by_their_hashes(tag):
    (inner,) = re.findall(f"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
    wanted = f"{tag}-src 'sha256-{base64.b64encode(sha256(inner.encode()).digest()).decode()}';"
    assert wanted in POLICY, f"write this into __haproxy_status_policy: {wanted}"
    assert "unsafe" not in POLICY and POLICY.startswith("default-src 'none';")


def test_nothing_is_fetched_from_elsewhere_and_no_text_becomes_markup():
    found = set(re.findall(r"\b\w+://[^\s\"'<]+", PAGE))
    assert found <= {"http://www.w3.org/2000/svg"}, "a name space, which is not fetched"
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", PAGE)
    assert not re.search(r"<[a-z][^>]*\s(on[a-z]+|style)=", PAGE.partition("<body>")[2].partition("<script>")[0])


def test_the_page_fits_into_haproxys_smallest_buffer_with_it():
    # See tasks/preflight.yml; HAProxy keeps 1024 bytes of a buffer for headers that it adds.
    assert len(PAGE.encode()) < 32768 - 4096
