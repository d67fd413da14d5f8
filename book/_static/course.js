"use strict";
// What every page needs besides the theme: loaded before search runs, with `defer`.

// A page that was opened as a file may not read others, so search shows titles without excerpts there.
DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = location.protocol !== "file:";

document.addEventListener("click", (event) => {
  if (event.target.closest("[data-course=print]")) window.print();
});
