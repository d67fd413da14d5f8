"use strict";
// Turns the lists of "Check yourself" into questions that answer; without this script the answers unfold.
document.querySelectorAll(".quiz.admonition").forEach((quiz, number) => {
  const list = quiz.querySelector(":scope > ol"), answer = quiz.querySelector(":scope > .admonition");
  const right = parseInt(answer.querySelector("strong").textContent, 10);
  const verdict = document.createElement("p");
  verdict.className = "quiz-verdict";
  verdict.setAttribute("role", "status");

  const group = document.createElement("fieldset");
  const legend = document.createElement("legend");
  legend.className = "quiz-legend";
  legend.textContent = `Answers to ${quiz.querySelector(".admonition-title").textContent}`;
  group.append(legend);
  [...list.children].forEach((item, i) => {
    const label = document.createElement("label"), input = document.createElement("input"), text = document.createElement("span");
    Object.assign(input, { type: "radio", name: `quiz-${number}`, value: i + 1 });
    input.addEventListener("change", () => {
      const isRight = i + 1 === right;
      group.querySelectorAll("label").forEach((other) => other.classList.remove("quiz-right", "quiz-wrong"));
      label.classList.add(isRight ? "quiz-right" : "quiz-wrong");
      verdict.textContent = isRight ? "Right." : "No. Try another, or open the answer.";
      if (isRight) answer.classList.remove("toggle-hidden");
    });
    text.append(...item.childNodes);
    label.append(input, `${i + 1}.`, text);
    group.append(label);
  });
  list.replaceWith(group, verdict);
});
