"""Coursework: problem sets that are released to students, collected, and graded without trusting them.

Where what happens, in the order of the data:

* ``release``: instructor notebooks become student notebooks, without the solutions.
* ``collector``: reads what was handed in, as data; nothing of it runs here.
* ``runner``: the one file that runs beside student code, inside the sandbox; it answers calls.
* ``sandbox``: runs the runner with no network, no files, and limits on everything; ``seccomp`` is a part
  of its walls.
* ``oracle``: what a task asks, which inputs are drawn, and whether the answers are right.
* ``ps1`` to ``ps5``: the tasks themselves, with their reference answers.
* ``grading``: one submission, or many side by side.
* ``report`` and ``gradebook``: results, grades.csv, feedback pages; nbgrader's gradebook.
* ``pile``: a folder of submissions from the first file to the last page.
* ``commands``: the command line over these.
"""
