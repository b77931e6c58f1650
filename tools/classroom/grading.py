"""What this course does differently while nbgrader hands out and grades.

Handing out: a solution becomes the stub that the course gives it. Grading: test cells that are gone come back; a
notebook that hangs, dies or floods costs its own cells only; a test cell has its points if the second check has left
its proof there, and whatever was written to stderr costs nothing.

nbgrader runs submissions as the user who runs nbgrader. None of this keeps a submission from reading or writing what
that user can read or write: see "Who runs the submissions" in TEACHING.md.
"""

import json
import os
import re
import time

from hidden_checks import PROOF, proof
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbconvert.preprocessors import ClearMetadataPreprocessor
from nbformat.v4 import new_code_cell, new_output
from nbgrader import preprocessors
from nbgrader.api import Gradebook
from nbgrader.utils import is_grade, is_solution
from traitlets import Integer

BEGIN, END, STUB = "### BEGIN SOLUTION", "### END SOLUTION", "### STUB:"
HIDDEN = re.compile(r"### BEGIN HIDDEN TESTS.*?### END HIDDEN TESTS", re.S)
KEYS = {"schema_version", "grade_id", "grade", "solution", "locked"}
WARM_UP = """exec('''
import torch, gqa_lab.checks
from gqa_lab.traffic import TrafficMeter
with TrafficMeter():  # the first operation under a meter imports much of torch
    torch.ones(1) + 1
''', {})"""
WARM_UP_TIMEOUT = 300  # seconds: what it takes to import the libraries is not the student's time
WARM_UP_USUAL = 5.0  # seconds on a machine that is neither slow nor busy, amply


class ClearSolutions(preprocessors.ClearSolutions):
    """Puts the stubs of the course where solutions stand: `### STUB:` lines if there are any, else nbgrader's."""

    def preprocess_cell(self, cell, resources, index):
        lines, stub, indent = [], None, ""
        for line in cell.source.split("\n"):
            text = line.strip()
            if text == BEGIN:
                stub, indent = [], line[: len(line) - len(line.lstrip())]
            elif text == END:
                lines += [f"{indent}{text}".rstrip() for text in stub or ["raise NotImplementedError"]]
                stub = None
            elif stub is None:
                lines.append(line)
            elif text.startswith(STUB):
                stub.append(text.removeprefix(STUB).removeprefix(" "))
        cell.source = "\n".join(lines)
        return cell, resources


class CleanMetadata(preprocessors.DeduplicateIds):
    """Takes nbgrader's metadata off cells where it is broken or repeated: the last of several copies counts.

    Without this one copied cell stops the grading of the whole class ("an old version of the metadata format").
    """

    def preprocess(self, nb, resources):
        here = resources["nbgrader"]
        with Gradebook(here["db_url"]) as gradebook:
            known = {cell.name for cell in gradebook.find_notebook(here["notebook"], here["assignment"]).source_cells}
        seen = set()
        for cell in reversed(nb.cells):
            data = cell.metadata.get("nbgrader")
            if data is None:
                continue
            name = data.get("grade_id") if isinstance(data, dict) else None
            is_whole = name in known and data.get("schema_version") == 3 and KEYS <= set(data)
            if is_whole and name not in seen:
                seen.add(name)
                continue
            why = "is there more than once; the last one counts" if name in seen else "has broken metadata"
            self.log.warning("%s, %s: the cell %s %s.", here["student"], here["notebook"], name, why)
            del cell.metadata["nbgrader"]
        return nb, resources


class RestoreCells(preprocessors.OverwriteCells):
    """Puts back what nbgrader locked and a student changed or deleted: test cells at the end, numbers before them."""

    def preprocess(self, nb, resources):
        here = resources["nbgrader"]
        self.who = f"{here['student']}, {here['notebook']}"
        nb, resources = super().preprocess(nb, resources)
        with Gradebook(here["db_url"]) as gradebook:
            source = gradebook.find_notebook(here["notebook"], here["assignment"])
            points = {cell.name: cell.max_score for cell in source.grade_cells}
            solutions = {cell.name for cell in source.solution_cells}
            numbers = []
            for cell in source.source_cells:
                if cell.name in self.ids(nb) or (cell.name in solutions and cell.name not in points):
                    continue
                self.log.warning("%s: the cell %s was missing and was put back.", self.who, cell.name)
                again = new_code_cell(cell.source)
                if cell.name in solutions:
                    again.source = "# This cell was missing from the submission."
                data = {
                    "schema_version": 3,
                    "grade_id": cell.name,
                    "grade": cell.name in points,
                    "solution": cell.name in solutions,
                    "locked": bool(cell.locked),
                    "task": False,
                    "checksum": cell.checksum,
                    "cell_type": cell.cell_type,
                }
                if cell.name in points:
                    data["points"] = points[cell.name]
                again.metadata["nbgrader"] = data
                (nb.cells if cell.name in points else numbers).append(again)
        for cell in numbers:
            test = cell.metadata.nbgrader.grade_id.removesuffix("-case")
            nb.cells.insert(self.ids(nb).index(test), cell)
        return nb, resources

    def preprocess_cell(self, cell, resources, index):
        name = cell.metadata.get("nbgrader", {}).get("grade_id")
        if name:
            source = self.gradebook.find_source_cell(name, self.notebook_id, self.assignment_id)
            if source.locked and cell.source.strip() != HIDDEN.sub("", source.source).strip():
                self.log.warning("%s: the cell %s was changed and was put back.", self.who, name)
            if source.locked:
                cell.source = source.source
        return super().preprocess_cell(cell, resources, index)

    @staticmethod
    def ids(nb) -> list[str]:
        """Returns the grade id of every cell, "" where there is none."""
        return [cell.metadata.get("nbgrader", {}).get("grade_id", "") for cell in nb.cells]


class Execute(preprocessors.Execute):
    """Runs a submission; whatever it does, the rest of the class is graded, and so are its own earlier cells."""

    notebook_timeout = Integer(240, help="seconds for all cells of a notebook").tag(config=True)
    max_characters = Integer(100_000, help="characters that are kept of what a cell shows").tag(config=True)

    def preprocess(self, nb, resources, km=None):
        here = resources["nbgrader"]
        self.who, self.stopped, self.n_timeouts = f"{here['student']}, {here['notebook']}", "", 0
        self.deadline, self.usual_timeout = None, self.timeout
        os.environ["GQA_LAB_STUDENT"] = here["student"]
        try:
            return super().preprocess(nb, resources, km)
        finally:
            self.timeout = self.usual_timeout
            del os.environ["GQA_LAB_STUDENT"]

    def preprocess_cell(self, cell, resources, index):
        if cell.cell_type != "code":
            return cell, resources
        if self.stopped or (self.deadline and time.monotonic() > self.deadline):
            self.stop(f"the notebook took more than {self.notebook_limit} s", index)
            cell.outputs = [_error("NotRun", f"This cell was not run: {self.stopped}.")]
            return cell, resources
        cell.metadata.pop("tags", None)  # no tag of a student's skips a cell
        try:
            self.warm_up(resources)
            self.n_characters = 0
            super().preprocess_cell(cell, resources, index)
        except DeadKernelError:
            self.stop("the kernel died, for instance by exit() or for want of memory", index)
            cell.outputs.append(_error("DeadKernel", f"{self.stopped}."))
        except CellTimeoutError:
            self.stop("the kernel stopped answering", index)
            cell.outputs.append(_error("NoAnswer", f"{self.stopped}."))
        names = [output.get("ename") for output in cell.get("outputs", [])]
        if "CellTimeoutError" in names:
            self.log.warning("%s: cell %d did not end within %d s and was interrupted.", self.who, index, self.timeout)
        self.n_timeouts = self.n_timeouts + 1 if "CellTimeoutError" in names else 0
        if self.n_timeouts == 2:
            self.stop("two cells in a row did not end", index)
        if self.n_characters > self.max_characters:
            note = f"… cut after {self.max_characters:,} characters\n"
            cell.outputs.append(new_output("stream", name="stdout", text=note))
            self.log.warning("%s: cell %d showed too much; %s characters cut.", self.who, index, self.n_characters)
        return cell, resources

    def warm_up(self, resources) -> None:
        """Imports the libraries before the first cell, and lets the time of the notebook begin.

        Where that takes long, the machine is slow or busy, and every limit grows with it.
        """
        if self.deadline is None:
            limit, self.timeout, self.n_characters, start = self.timeout, WARM_UP_TIMEOUT, 0, time.monotonic()
            super().preprocess_cell(new_code_cell(WARM_UP), resources, 0)
            slowness = max(1.0, (time.monotonic() - start) / WARM_UP_USUAL)
            self.timeout, self.notebook_limit = round(limit * slowness), round(self.notebook_timeout * slowness)
            self.deadline = time.monotonic() + self.notebook_limit

    def stop(self, why: str, index: int) -> None:
        """From here on no cell is run; says so once in the log."""
        if not self.stopped:
            self.stopped = why
            self.log.error("%s: stopped at cell %d: %s. Later cells have no points.", self.who, index, why)

    def output(self, outs, msg, display_id, cell_index):
        """Keeps an output, unless the cell has shown too much already."""
        content = msg["content"]
        self.n_characters += len(content.get("text") or json.dumps(content.get("data", {})))
        if msg["msg_type"] != "error" and self.n_characters > self.max_characters:
            return None
        return super().output(outs, msg, display_id, cell_index)


class RequireProof(preprocessors.SaveAutoGrades):
    """A test cell has its points if the second check left its proof, and none otherwise; no output means no points.

    nbgrader gives a cell no points if anything was written to stderr, full points if there is no error, and as many
    points as a number in its last line says. The proof stands for all three.
    """

    def preprocess_cell(self, cell, resources, index):
        if cell.cell_type == "code" and is_grade(cell) and not is_solution(cell):
            name = cell.metadata.nbgrader.grade_id.replace("-", ".", 1)
            wanted, found, kept = proof(name, resources["nbgrader"]["student"]), False, []
            for output in cell.outputs:
                found |= output.get("data", {}).pop(PROOF, None) == wanted
                if output.output_type == "execute_result":
                    output = new_output("display_data", data=output.data)
                if output.output_type == "stream":
                    output.name = "stdout"
                kept.append(output)
            has_error = any(output.output_type == "error" for output in kept)
            if not found and not has_error:
                kept.append(_error("NotPassed", "The second check of this cell did not come to its end."))
            cell.outputs = kept
        return super().preprocess_cell(cell, resources, index)


def _error(name: str, text: str):
    return new_output("error", ename=name, evalue=text, traceback=[f"{name}: {text}"])


FOR_STUDENTS = [
    preprocessors.IncludeHeaderFooter,
    preprocessors.LockCells,
    ClearSolutions,
    preprocessors.ClearOutput,
    preprocessors.CheckCellMetadata,
    preprocessors.ComputeChecksums,
    preprocessors.SaveCells,
    preprocessors.ClearHiddenTests,
    preprocessors.ClearMarkScheme,
    preprocessors.ComputeChecksums,
    preprocessors.CheckCellMetadata,
]
BEFORE = [
    preprocessors.ClearOutput,
    CleanMetadata,
    preprocessors.OverwriteKernelspec,
    RestoreCells,
    preprocessors.CheckCellMetadata,
]
AFTER = [
    Execute,
    preprocessors.IgnorePattern,
    ClearMetadataPreprocessor,
    preprocessors.LimitOutput,
    RequireProof,
    preprocessors.AssignLatePenalties,
    preprocessors.CheckCellMetadata,
]
