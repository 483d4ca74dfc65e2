import shutil
import subprocess
import sys
from pathlib import Path

import normkit

RUN = """
import numpy as np
from normkit.attention import long_row
row = np.arange(8, dtype=np.float32)
long_row.three_pass(row, np.empty_like(row), False)
print(sum(long_row.three_pass.stats.cache_misses.values()))
"""


def test_a_cached_kernel_compiles_anew_when_its_callees_file_has_changed(tmp_path):
    """As after an upgrade: numba itself looks at the file of the kernel alone, and fails where an old cache can't be read."""
    package = tmp_path / "normkit"
    shutil.copytree(Path(normkit.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__", "static"))

    def compiled():
        done = subprocess.run([sys.executable, "-c", RUN], cwd=tmp_path, check=True, capture_output=True, text=True)
        return int(done.stdout)

    assert [compiled(), compiled()] == [1, 0]
    for file, anew in (("rates/kernels.py", 0), ("attention/kernels.py", 1), ("layers/kernels.py", 1)):
        with open(package / file, "a") as text:
            text.write("# edited\n")
        for index in package.rglob("*.nbi") if anew else ():
            index.write_bytes(b"what another version left")
        assert compiled() == anew, file
