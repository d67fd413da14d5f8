"""Coursework: problem sets that are released to students, handed in, and graded without trusting them.

Who does what, in the order of the data:

* ``release``: instructor notebooks become student notebooks, without the solutions.
* ``intake``: reads what was handed in, as data; nothing of it runs here.
* ``tasks``: what each task asks, the inputs drawn, and the reference answers.
* ``box``: the walls, and what runs inside them beside student code and answers calls.
* ``oracle``: puts the questions and judges the answers, outside the walls.
* ``grading``: one submission.
* ``results`` and ``gradebook``: result files, grades.csv and feedback pages; nbgrader's gradebook.
* ``classes``: a folder of submissions, side by side, from the first file to the last page.
"""
