"""The walls around student code, and what runs inside them.

``runner``, ``calls`` and ``values`` run inside, where the package is hidden: they import nothing of it
but each other.  ``probe`` looks from inside whether the walls hold.  ``sandbox`` with ``filter`` builds
the walls, and ``watching`` looks over them.
"""
