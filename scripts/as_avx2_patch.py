"""For scripts/as_avx2 where the processor cannot fault cpuid: a copy of ONNX Runtime without it.

    python scripts/as_avx2_patch.py FOLDER

replaces it by an illegal instruction of the same two bytes, for which the preloaded library answers, and
prints the folder to put on PYTHONPATH. Needs objdump. Copies are kept by version.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

CPUID, UD2 = b"\x0f\xa2", b"\x0f\x0b"


def main() -> None:
    """Make the copy, if it is not there."""
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("onnxruntime is not installed")
    source = Path(spec.submodule_search_locations[0])
    version = importlib.metadata.version("onnxruntime")
    folder = Path(sys.argv[1]).resolve() / f"onnxruntime-{version}"
    if not folder.is_dir():
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(source, part / "onnxruntime", ignore=shutil.ignore_patterns("transformers", "tools"))
        found = sum(patch(library) for library in part.rglob("*.so*"))
        if not found:
            sys.exit(f"no cpuid instruction found in {source}")
        os.rename(part, folder)
    print(folder)


def patch(library: Path) -> int:
    """Replace each cpuid instruction, and return how many there were."""
    text = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", library], check=True, capture_output=True, text=True
    ).stdout
    addresses = [int(a, 16) for a in re.findall(r"^\s*([0-9a-f]+):\s+cpuid", text, re.MULTILINE)]
    sections = subprocess.run(["objdump", "-h", library], check=True, capture_output=True, text=True).stdout
    # of each section: size, address, address when loaded, place in the file
    rows = re.findall(r"^\s*\d+ \S+\s+(\w+)\s+(\w+)\s+\w+\s+(\w+)", sections, re.MULTILINE)
    code = bytearray(library.read_bytes())
    for address in addresses:
        start, place = next(
            (int(a, 16), int(p, 16)) for s, a, p in rows if 0 <= address - int(a, 16) < int(s, 16)
        )
        at = address - start + place
        if code[at : at + 2] != CPUID:
            sys.exit(f"{library}: no cpuid at {address:#x}")
        code[at : at + 2] = UD2
    library.write_bytes(code)
    return len(addresses)


if __name__ == "__main__":
    main()
