"""Fail the k-th system call on the files that gapscope writes, for every k, and look at what is left.

    python -m tests.hardening.faults [ATTACK ...] [--only FAULT] [--stride N]

The calls are those of the real command line, failed by a library that is loaded before libc (failing_calls.c): a call
returns an error, the disk is full from then on, or a signal arrives.  Each fault meets a copy of the same folder in a
forked process.  Afterwards every file must be the old or the new one, and nothing else be there; the message is one
line, the exit code is one of README's.  Prints a row per attack and fault, and every violation.
"""

import argparse
import contextlib
import ctypes
import errno
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).with_name("failing_calls.c")
SMALL = ROOT / "fixtures" / "digits-small-batch.pt"
SECONDS = 60  # no attack takes longer, or it hangs

# fault -> what the k-th call does, and whether everything that needs room fails from then on
FAULTS = {
    "full once": (errno.ENOSPC, False),
    "full disk": (errno.ENOSPC, True),
    "permission": (errno.EACCES, False),
    "input/output": (errno.EIO, False),
    "Ctrl-C": (-signal.SIGINT, False),
    "SIGTERM": (-signal.SIGTERM, False),
    "kill -9": (-signal.SIGKILL, False),
}
CODES = {"Ctrl-C": (0, 130), "SIGTERM": (0, 143), "kill -9": (0, -signal.SIGKILL)}
LEFT = (".gapscope.tmp",)  # what a killed process may leave


@dataclass(frozen=True)
class Attack:
    """A command that replaces files of a folder, and the commands that made what is there before.

    `together`: files that only make sense together; `state`: what an interrupted command leaves to go on from.
    """

    before: tuple[str, ...]
    command: str
    files: tuple[str, ...]
    together: tuple[str, ...] = ()
    state: str | None = None
    again: bool = False  # an interrupted command goes on, to the same files


MEASURED = f"{SMALL} --limit 40 --threads 1 -q -o r.h5"
TRAINED = "train -m mlp -d digits --batch-size 500 --steps 3 --lr 0.1 --threads 1 -q --no-log -o x.pt --save-state"
ATTACKS = {
    "report": Attack((f"near-rank {MEASURED}",), f"gap {MEASURED}", ("r.h5",)),
    "comparison": Attack(
        (f"gap {MEASURED}", "compare r.h5 r.h5 --labels c,d --force -o c.h5 --html p.html"),
        "compare r.h5 r.h5 --labels a,b --force -o c.h5 --html p.html",
        ("r.h5", "c.h5", "p.html"),
    ),
    "baseline": Attack(
        (f"gap {MEASURED}", "baseline accept r.h5 --reason first", f"near-rank {MEASURED}"),
        "baseline accept r.h5 --reason second",
        ("r.h5", "baseline.h5", "baseline.txt"),
        together=("baseline.h5", "baseline.txt"),
    ),
    "training": Attack(
        (f"{TRAINED} 60s --seed 1",), f"{TRAINED} 0.001s --seed 2", ("x.pt",), state="x.pt.state", again=True
    ),
    "resume state": Attack(
        (f"near-rank {MEASURED}",), f"trace {MEASURED} --resume", ("r.h5",), state="r.h5.state", again=True
    ),
    "safetensors": Attack(("convert x.pt w.safetensors",), "convert y.pt w.safetensors --force", ("w.safetensors",)),
}


def digest(path: Path) -> str:
    """Return what a file says: of reports without times; '' where there is none.  Raises where it is not whole."""
    from gapscope.report.file import read
    from tests.stored import stored

    if not path.exists():
        return ""
    if path.suffix == ".h5":
        read(path)
        return json.dumps(stored(path), sort_keys=True, default=repr)
    content = path.read_bytes()
    if path.suffix == ".pt":
        import torch

        whole = torch.load(path, weights_only=True)
        return repr([(k, v.sum().item()) for k, v in sorted(whole["model"].items())])
    if path.suffix == ".txt":
        return content.decode()
    return content.hex()


@dataclass
class Found:
    """What came of an attack with one fault."""

    tried: int = 0
    wrong: list[str] = field(default_factory=list)


class Arena:
    """A folder as it is before an attack, and as it is after an undisturbed one."""

    def __init__(self, attack: Attack, scratch: Path, library: ctypes.CDLL) -> None:
        self.attack, self.library = attack, library
        self.start, self.here, self.said = scratch / "start", scratch / "here", scratch / "said"
        self.start.mkdir(parents=True)
        if any("convert" in word for word in (attack.command, *attack.before)):
            shutil.copy(SMALL, self.start / "x.pt")
            shutil.copy(SMALL.with_name("digits-large-batch.pt"), self.start / "y.pt")
        for command in attack.before:
            self._enter(self.start)
            code = self._fork(command.split(), lambda: None)
            assert code == 0, (command, code, self.said.read_text())
        self.old = {name: digest(self.start / name) for name in attack.files}
        self._enter(self.start, self.here)
        modules = scratch / "modules"
        code = self._fork(
            attack.command.split(), lambda: None, lambda: modules.write_text("\n".join(map(str, sys.modules)))
        )
        assert code == 0, (attack.command, code, self.said.read_text())
        for module in modules.read_text().split():  # once for all forks
            if not module.startswith("__") and module not in sys.modules:
                with contextlib.suppress(ImportError):
                    importlib.import_module(module)
        self.new = {name: digest(self.here / name) for name in attack.files}
        self.names = {one.name for one in self.here.iterdir()} | {one.name for one in self.start.iterdir()}
        assert self.old != self.new

    def calls(self) -> int:
        """Return how many calls an undisturbed attack makes."""
        self._enter(self.start, self.here)
        count = self.said.with_name("count")

        def told() -> None:
            count.write_text(str(self.library.counted()))

        self._fork(self.attack.command.split(), lambda: self._arm(0, 0, False), told)
        return int(count.read_text())

    def hit(self, name: str, k: int) -> list[str]:
        """Fail the k-th call, and return what is wrong afterwards."""
        fault, forever = FAULTS[name]
        self._enter(self.start, self.here)
        code = self._fork(self.attack.command.split(), lambda: self._arm(k, fault, forever))
        return [f"{name} at call {k}: {wrong}" for wrong in self._wrong(name, code)]

    def _wrong(self, name: str, code: int) -> Iterator[str]:
        attack, said = self.attack, self.said.read_text()
        if code not in CODES.get(name, (0, 2)):
            yield f"exit code {code}: {said[-300:]!r}"
        if "Traceback" in said:
            yield f"a traceback: {said[-300:]!r}"
        elif code == 2 and (not said.startswith("error: ") or said.count("\n") != 1):
            yield f"not one line: {said!r}"
        found = {}
        for file in attack.files:
            try:
                found[file] = digest(self.here / file)
            except Exception as error:  # whatever a reader of a broken file raises
                yield f"{file} is not whole: {error}"
                continue
            if found[file] not in (self.old[file], self.new[file]):
                yield f"{file} is neither the old nor the new one"
            elif code == 0 and found[file] != self.new[file]:
                yield f"{file} is the old one after exit code 0"
        states = [{file: side[file] for file in attack.together} for side in (self.old, self.new)]
        if code != -signal.SIGKILL and {file: found.get(file) for file in attack.together} not in states:
            yield f"{' and '.join(attack.together)} do not belong together; {said!r}"
        extra = {one.name for one in self.here.iterdir()} - self.names - {attack.state}
        if code == -signal.SIGKILL:
            extra = {one for one in extra if not one.endswith(LEFT)}
        if extra:
            yield f"left behind: {', '.join(sorted(extra))}"
        if attack.again and (code or (self.here / str(attack.state)).exists()):
            code = self._fork(attack.command.split(), lambda: None)
            after = {file: digest(self.here / file) for file in attack.files}
            if code or after != self.new:
                yield f"going on ended with {code}, {after == self.new}: {self.said.read_text()!r}"

    def _arm(self, k: int, fault: int, forever: bool) -> None:
        self.library.arm(str(self.here).encode(), ctypes.c_long(k), fault, int(forever))

    @staticmethod
    def _enter(folder: Path, here: Path | None = None) -> None:
        os.chdir(folder.parent)
        if here is not None:
            shutil.rmtree(here, ignore_errors=True)
            shutil.copytree(folder, here)
        os.chdir(here or folder)

    def _fork(self, words: list[str], begin: Callable[[], None], end: Callable[[], None] = lambda: None) -> int:
        """Run the command line in a forked process, and return its exit code, or minus a signal."""
        pid = os.fork()
        if pid == 0:
            code = 99
            with contextlib.suppress(BaseException), self.said.open("w", buffering=1) as said:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                os.dup2(said.fileno(), 2)
                try:
                    code = _console(words, begin)
                except BaseException:  # as the interpreter would
                    self.library.arm(b"", ctypes.c_long(0), 0, 0)
                    traceback.print_exc(file=said)
                    code = 1
                end()
            os._exit(code)
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return -1000  # it hangs


def _console(words: list[str], begin: Callable[[], None]) -> int:
    from gapscope.__main__ import main

    sys.argv = ["gapscope", *words]
    begin()
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def attacked(name: str, library: ctypes.CDLL, faults: dict[str, int], scratch: Path) -> dict[str, Found]:
    """Attack with each of these faults, at every so many calls."""
    from gapscope.measure import resume

    resume.SAVE_SECONDS = 0.0 if ATTACKS[name].again else 60.0  # 0: a file from the first part on
    arena = Arena(ATTACKS[name], scratch, library)
    calls = arena.calls()
    found = {fault: Found() for fault in faults}
    for fault, stride in faults.items():
        for k in range(1, calls + 1, stride):
            found[fault].tried += 1
            found[fault].wrong += arena.hit(fault, k)
    os.chdir(ROOT)
    return found


def child(plan: dict[str, dict[str, int]]) -> None:
    """Run a plan (attack -> fault -> stride) below the preloaded library; one line of JSON for each attack."""
    import torch
    import typer

    import gapscope.cli
    from gapscope.cli.settings import Configuration

    torch.set_num_threads(1)
    app, made = (
        gapscope.cli.app,
        typer.main.get_command,
    )  # parsers are built once for all forks: most of the time of a small command
    verbs = {attack.command.split()[0] for attack in ATTACKS.values()}
    parsers = {verb: made(app(Configuration(), verb)) for verb in verbs}
    gapscope.cli.app = lambda configuration, verb: parsers.get(verb) or app(configuration, verb)
    typer.main.get_command = lambda asked: asked if asked in parsers.values() else made(asked)
    library = ctypes.CDLL(os.environ["LD_PRELOAD"])
    for name, faults in plan.items():
        with tempfile.TemporaryDirectory() as scratch:
            found = attacked(name, library, faults, Path(scratch).resolve())
        print(json.dumps({"attack": name, **{k: [v.tried, v.wrong] for k, v in found.items()}}), flush=True)


def run(plan: dict[str, dict[str, int]], scratch: Path) -> Iterator[tuple[str, dict[str, Found]]]:
    """Compile the library, run a plan below it, and yield what was found, attack by attack."""
    library = scratch / "failing_calls.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    environment = os.environ | {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "TERM": "dumb"}
    command = [sys.executable, "-m", "tests.hardening.faults", "--child", json.dumps(plan)]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            row = json.loads(line)
            yield row.pop("attack"), {fault: Found(*values) for fault, values in row.items()}
    if process.returncode:
        raise RuntimeError(f"the attacks ended with {process.returncode}")


def main() -> None:
    """Run every attack with every fault, and print a row for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("attacks", nargs="*", default=list(ATTACKS))
    parser.add_argument("--only", action="append", choices=list(FAULTS))
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--child")
    given = parser.parse_args()
    if given.child:
        child(json.loads(given.child))
        return
    plan = {attack: dict.fromkeys(given.only or FAULTS, given.stride) for attack in given.attacks}
    with tempfile.TemporaryDirectory() as scratch:
        for attack, faults in run(plan, Path(scratch)):
            for fault, found in faults.items():
                failed = len({one.split(": ")[0] for one in found.wrong})
                print(f"{attack:16} {fault:14} tried {found.tried:4}  failed {failed}", flush=True)
                for wrong in found.wrong:
                    print(f"    {wrong}")


if __name__ == "__main__":
    main()
