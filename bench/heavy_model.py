#!/usr/bin/env python3
"""A model for the lab that is as slow as a real one is on a GPU: a request costs tenths of a second of one core, not milliseconds.

    PYTHONPATH=. .venv/bin/python bench/heavy_model.py /tmp/heavy        # writes heavy.gguf and lab.json
    ansible-playbook -i inventory/lab site.yml -e @/tmp/heavy/lab.json   # one replica with four slots; `make lab` brings the others back

18.6 million random weights, with the demo model's vocabulary and chat template. It talks nonsense, in the time that sense would take.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from demo.gguf_file import read_tokenizer, write_model
from demo.shape import Shape

RELEASE = Path(__file__).parents[1] / "demo/release/ptolemy-demo-q8_0.gguf"
SIZES = {"width": 512, "layers": 6, "heads": 8, "kv_heads": 2, "feed_forward": 1536, "context": 8192}
SERVICE = {
    "model": "heavy", "min": 1, "max": 1, "partition": "gpu", "gpus": 1, "servers_per_gpu": 1, "slots": 4, "context": 2048,
    "time_limit": "1-00:00:00", "cpus_per_gpu": 1, "memory_per_gpu": "2G",
    "flags": ["--threads", "1", "--threads-batch", "1", "--cache-ram", "0"],
}  # fmt: skip


def weights(shape: Shape) -> dict[str, npt.NDArray[np.float32]]:
    """Random matrices by their names in a GGUF file."""
    chance = np.random.default_rng(1)
    keys, inner, width = shape.head * shape.kv_heads, shape.feed_forward, shape.width

    def matrix(rows: int, columns: int) -> npt.NDArray[np.float32]:
        return (chance.standard_normal((rows, columns)) * 0.02).astype(np.float32)

    made = {"token_embd.weight": matrix(shape.vocabulary, width), "output_norm.weight": np.ones(width, np.float32)}
    for layer in range(shape.layers):
        sizes = {"attn_q": (width, width), "attn_k": (keys, width), "attn_v": (keys, width), "attn_output": (width, width)}
        sizes |= {"ffn_gate": (inner, width), "ffn_up": (inner, width), "ffn_down": (width, inner)}
        made |= {f"blk.{layer}.{name}.weight": matrix(*size) for name, size in sizes.items()}
        made |= {f"blk.{layer}.{name}.weight": np.ones(width, np.float32) for name in ("attn_norm", "ffn_norm")}
    return made


def main() -> None:
    """Write both files."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    directory = Path(sys.argv[1]).resolve()
    directory.mkdir(exist_ok=True)
    path = directory / "heavy.gguf"
    tokenizer = read_tokenizer(RELEASE)
    shape = Shape(len(tokenizer.pieces), **SIZES)
    write_model(path, shape, tokenizer, weights(shape), "q8_0")
    model = {"file": path.name, "source": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "licence": "none"}
    (directory / "lab.json").write_text(json.dumps({"ptolemy_models": {"heavy": model}, "ptolemy_services": {"demo": SERVICE}}, indent=1))
    print(f"{path}\n{directory / 'lab.json'}")


if __name__ == "__main__":
    main()
