"""Run a command as on a processor with AVX2 and nothing newer: no AVX-512, VNNI, bfloat16 or AMX (x86-64 Linux, gcc).

    python benchmarks/as_avx2.py python benchmarks/streaming.py --threads 2

PyTorch, its matrix libraries and NumPy have switches for that. ONNX Runtime has none: it asks the processor itself. So
a copy of it is made in which each CPUID instruction (two bytes) is a breakpoint, and a library that is loaded first
answers the breakpoint with what the processor says, less what is newer. Speeds are those of this processor's AVX2.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ANSWER = r"""
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <ucontext.h>
#define BIT(n) (1u << (n))
static void answer(int number, siginfo_t *info, void *context) {
  greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
  unsigned leaf = r[REG_RAX], part = r[REG_RCX], a, b, c, d;
  __cpuid_count(leaf, part, a, b, c, d);
  if (leaf == 7 && part == 0) {  /* AVX-512 in all its parts, and AMX */
    b &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31));
    c &= ~(BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14));
    d &= ~(BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25));
  }
  if (leaf == 7 && part == 1) {  /* AVX-VNNI, bfloat16, AMX in float16, their successors */
    a &= ~(BIT(4) | BIT(5) | BIT(21));
    d &= ~(BIT(4) | BIT(5) | BIT(10) | BIT(19));
  }
  r[REG_RAX] = a, r[REG_RBX] = b, r[REG_RCX] = c, r[REG_RDX] = d;
}
__attribute__((constructor)) static void begin(void) {
  struct sigaction action = {0};
  action.sa_sigaction = answer;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGTRAP, &action, 0);
}
"""
SWITCHES = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
}
CPUID, BREAKPOINT = b"\x0f\xa2", b"\xcc\x90"


def main() -> None:
    command = sys.argv[1:]
    if not command or command[0] in ("-h", "--help"):
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "answer.c").write_text(ANSWER)
        compile_it = ["gcc", "-O1", "-shared", "-fPIC", "-o", str(home / "answer.so"), str(home / "answer.c")]
        subprocess.run(compile_it, check=True)
        found = importlib.util.find_spec("onnxruntime")
        if found is not None and found.origin is not None:
            shutil.copytree(Path(found.origin).parent, home / "packages" / "onnxruntime")
            for library in (home / "packages").rglob("onnxruntime_pybind11_state*.so"):
                print(f"{patch(library)} CPUID instructions of ONNX Runtime answered here", file=sys.stderr)
        path = os.pathsep.join(filter(None, (str(home / "packages"), os.environ.get("PYTHONPATH"))))
        # What has been measured of this processor does not hold here: a cache of its own.
        other = {"LD_PRELOAD": str(home / "answer.so"), "PYTHONPATH": path, "XDG_CACHE_HOME": str(home / "cache")}
        status = subprocess.run(command, env={**os.environ, **SWITCHES, **other}, check=False).returncode
    sys.exit(status)


def patch(library: Path) -> int:
    """Replace every CPUID instruction of a shared library; how many there were."""
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", str(library)], check=True, capture_output=True, text=True
    ).stdout
    addresses = [int(line.split(":")[0], 16) for line in listing.splitlines() if re.search(r":\s+cpuid\s*$", line)]
    headers = subprocess.run(["readelf", "-lW", str(library)], check=True, capture_output=True, text=True).stdout
    loads = [[int(field, 16) for field in line.split()[1:6]] for line in headers.splitlines() if "LOAD " in line]
    code = bytearray(library.read_bytes())
    for address in addresses:
        for offset, start, _, size, _ in loads:
            if start <= address < start + size:
                place = offset + address - start
                assert code[place : place + 2] == CPUID
                code[place : place + 2] = BREAKPOINT
    library.write_bytes(code)
    return len(addresses)


if __name__ == "__main__":
    main()
