"""nbval as the checker of one merged notebook: a watched kernel, tolerant comparison of emissions, a stream of results.

A pytest plugin (`-p normkit.course.nbval_plugin --course job.json`), started by `normkit.course.grade`. nbval collects, runs
and compares every cell; this adds what nbval leaves open: a dead kernel is seen at once, a hung one or a flood of output
ends the run, and each cell's outcome is written as a line of JSON as soon as it is known.
"""

import collections
import json
import os
import queue
import threading
import time
from pathlib import Path

import pytest
import zmq
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import KernelManager
from nbval.kernel import RunningKernel
from nbval.plugin import IPyNbCell, IPyNbFile

from normkit.course import sandbox
from normkit.course.compare import judge
from normkit.course.probes import MIME

SLICE = 0.1  # seconds between two looks at whether the kernel lives


class Culprit(Exception):
    """The cell that ended the kernel: "dead", "hung" or "flood"."""


class WatchedKernel(RunningKernel):
    """nbval's kernel in the sandbox. Sockets of files, since the sandbox has no network."""

    def __init__(self, job):
        limits, scratch, run = sandbox.Limits(**job["limits"]), Path(job["scratch"]), Path(job["run"])
        specs = KernelSpecManager()
        specs.get_kernel_spec = lambda name: KernelSpec(argv=job["command"], display_name="sandbox", language="python")
        context = zmq.Context()
        context.setsockopt(zmq.MAXMSGSIZE, limits.output_kb * 8192)  # one message; more ends the connection
        transport = {"transport": "ipc", "ip": str(run / "s")} if os.name == "posix" else {}
        self.km = KernelManager(
            kernel_spec_manager=specs, context=context, connection_file=str(run / "c.json"), **transport
        )
        self.km.write_connection_file()
        if job["user"] is not None:
            for path in (run, run / "c.json", scratch, *scratch.rglob("*")):
                os.chown(path, job["user"], sandbox.USERS[0])
        self.limits, self.waiting, self.used, self.deadline = limits, collections.deque(), 0, float("inf")
        nothing = open(os.devnull, "w")  # noqa: SIM115 - the kernel keeps it
        self.km.start_kernel(cwd=str(scratch), stderr=nothing, stdout=nothing, env=dict(os.environ))
        self.kc = self.km.client()
        self.kc.start_channels(stdin=False, control=False)  # nobody would read what a submission sends there
        self.kc.wait_for_ready(timeout=60)
        self._ensure_iopub_up()

    def execute_cell_input(self, cell_input, allow_stdin=None):
        self.used, self.deadline = 0, time.monotonic() + self.limits.cell_s
        return super().execute_cell_input(cell_input, allow_stdin)

    def get_message(self, stream, timeout=None):
        """The next message; iopub is drained, within the limit on output, while the shell is waited for."""
        end = time.monotonic() + (timeout if timeout is not None else float("inf"))
        while True:
            self._drain()
            if stream == "iopub" and self.waiting:
                return self.waiting.popleft()
            try:
                if stream == "shell":
                    return self.kc.get_shell_msg(timeout=SLICE / 4)
                self._keep(self.kc.get_iopub_msg(timeout=SLICE))
            except queue.Empty:
                if not self.is_alive():
                    raise Culprit("dead") from None
                if time.monotonic() > self.deadline:
                    raise Culprit("hung") from None
                if time.monotonic() > end:
                    if self.deadline == float("inf"):
                        raise  # no cell runs yet
                    raise Culprit("hung") from None  # the reply came, and the end of the output did not
            except (ValueError, KeyError, TypeError):
                continue  # a message that is none: the student's code can write to its own sockets

    def _drain(self):
        while True:
            if time.monotonic() > self.deadline:
                raise Culprit("hung")
            try:
                self._keep(self.kc.get_iopub_msg(timeout=0))
            except queue.Empty:
                return
            except (ValueError, KeyError, TypeError):
                continue

    def _keep(self, message):
        self.used += len(str(message["content"]))
        if self.used > self.limits.output_kb * 1024:
            raise Culprit("flood")
        self.waiting.append(message)


class MergedNotebook(IPyNbFile):
    """The merged notebook; its file is gone before the kernel starts."""

    def collect(self):
        self.job = self.config.course_job
        for number, item in enumerate(super().collect()):
            item.__class__ = MergedCell
            item.course_id = self.job["ids"][number]
            item.options = {
                "check": item.cell.metadata.normkit.role == "probe",
                "skip": False,
                "check_exception": False,
            }
            yield item
        self.path.unlink()

    def setup(self):
        sandbox.adopt()
        self.kernel = WatchedKernel(self.job)
        self.report = os.open(self.job["report"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def tell(self, **line):
        os.write(self.report, json.dumps(line).encode() + b"\n")

    def teardown(self):
        if self.kernel is not None:
            self.kernel.stop()
        sandbox.end(Path(self.job["scratch"]), os.getpid())


class MergedCell(IPyNbCell):
    """A cell of the merged notebook: nbval's, but for how an emission is compared and for what is written down."""

    def setup(self):
        pass  # nbval would expect every cell after a hung one to fail

    def runtest(self):
        self.said, self.emitted = "", None
        outcome = "dead"  # what an interrupt of this process leaves
        try:
            if not self.parent.kernel.is_alive():  # it ended between two cells
                raise Culprit("dead")
            super().runtest()
            outcome = "passed"
        except Culprit as culprit:
            outcome = str(culprit)
            pytest.exit(f"{self.course_id}: {outcome}", returncode=1)
        except Exception as error:
            outcome = "failed"
            self.said = self.said or self._error() or str(error)
            raise
        finally:
            text = "".join(str(o.get("text", "")) for o in self.test_outputs or () if o.output_type == "stream")
            results = [
                o.data.get("text/plain", "") for o in self.test_outputs or () if o.output_type == "execute_result"
            ]
            self.parent.tell(
                cell=self.course_id,
                outcome=outcome,
                said=_plain(self.said)[:500],
                text=_plain("".join(map(str, results)) or text)[:2000],
                **({"emitted": self.emitted} if self.parent.job["record"] else {}),
            )

    def compare_outputs(self, test, ref, skip_compare=None):
        """nbval's comparison, for one mime type and with the tolerances of the reference."""
        have = [o.data[MIME] for o in test if o.output_type == "display_data" and MIME in o.data]
        want = [o.data[MIME] for o in ref if MIME in o.get("data", ())]
        self.emitted = have[0] if len(have) == 1 else None
        if len(have) != 1:
            self.said = f"{len(have)} answers were emitted, not one"
        elif want:
            self.said = judge(want[0], have[0]) or ""
        self.comparison_traceback = [self.said]
        return not self.said

    def _error(self):
        errors = [o for o in self.test_outputs or () if o.output_type == "error"]
        return f"{errors[0].ename}: {errors[0].evalue}" if errors else ""


def _plain(text):
    """Text that a terminal, a spreadsheet and UTF-8 can take: no escape codes, no lone surrogates."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def pytest_addoption(parser):
    parser.addoption("--course", help="the job, as JSON, that normkit.course.grade wrote")


def pytest_configure(config):
    path = Path(config.getoption("--course"))
    config.course_job = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    threading.Thread(target=_outlive_no_grader, args=[config.course_job], daemon=True).start()


def _outlive_no_grader(job):
    """End with a grader that is killed, and leave nothing (POSIX: elsewhere a process keeps its parent's number)."""
    while os.getppid() == job["grader"]:
        time.sleep(0.5)
    sandbox.end(job["scratch"], os.getpid())
    sandbox.remove(job["folder"])
    os._exit(1)


def pytest_collect_file(file_path, parent):
    return MergedNotebook.from_parent(parent, path=file_path) if file_path.suffix == ".ipynb" else None
