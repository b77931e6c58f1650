"""nbgrader's settings for this course. Run every `nbgrader` command in the folder of this file."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TEACHER = Path(os.environ.get("GQA_LAB_TEACHER") or HERE.with_name(HERE.name + "-teacher"))
sys.path.insert(0, str(TEACHER))

import grading  # noqa: E402  (from the teacher's folder)

c = get_config()  # noqa: F821

c.CourseDirectory.course_id = "gqa-lab"
c.CourseDirectory.root = str(HERE)

# Grades lie in gradebook.db in this folder; two commands may write there at a time, and wait for each other.
c.CourseDirectory.db_url = f"sqlite:///{HERE / 'gradebook.db'}?timeout=120"
# For PostgreSQL: pip install "psycopg[binary]", an empty database, and its password in ~/.pgpass. Then:
# c.CourseDirectory.db_url = "postgresql+psycopg://teacher@localhost:5432/gqa_lab"

# nbgrader's own steps, with ours in place of three of them. What each does is said in grading.py.
c.GenerateAssignment.preprocessors = grading.FOR_STUDENTS
c.Autograde.sanitize_preprocessors = grading.BEFORE
c.Autograde.autograde_preprocessors = grading.AFTER

c.Execute.timeout = 30  # seconds for one cell
c.Execute.notebook_timeout = 240  # seconds for a whole notebook
c.Execute.max_characters = 100_000  # that a cell may print
c.Execute.iopub_timeout = 30

# Submissions are run on the CPU, without the real model: cells that talk to it end at once.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["GQA_LAB_CACHE"] = str(TEACHER / "no-model")
os.environ["GQA_LAB_HIDDEN_CHECKS"] = str(TEACHER / "hidden_checks.py")
os.environ.setdefault("OMP_NUM_THREADS", "1")
