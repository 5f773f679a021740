// Walks through the questions in #data. What models wrote is only ever set as textContent.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const runs = JSON.parse($("data").textContent);
  const ANY = "any";
  const THRESHOLDS = [0.001, 0.01, 0.05, 0.2, 0.7];  // nats; where each shade begins
  const state = { run: 0, set: ANY, fate: ANY, verdict: ANY, index: 0 };

  function element(tag, properties, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  const chosen = () => runs[state.run].items.filter((item) =>
    (state.set === ANY || item.set === state.set) &&
    (state.fate === ANY || item.fate === state.fate) &&
    (state.verdict === ANY || item.answers.some((answer) => answer.outcome === state.verdict)));

  function options(id, values, counts) {
    $(id).replaceChildren(...values.map((value, i) =>
      element("option", { value, textContent: counts ? `${value} (${counts[i]})` : value })));
    $(id).value = state[id];
  }

  function refreshFilters() {
    const items = runs[state.run].items;
    const tally = (name, of) => {
      const counts = new Map([[ANY, items.length]]);
      for (const item of items) for (const value of new Set(of(item))) counts.set(value, (counts.get(value) ?? 0) + 1);
      if (!counts.has(state[name])) state[name] = ANY;
      options(name, [...counts.keys()], [...counts.values()]);
    };
    tally("set", (item) => [item.set]);
    tally("fate", (item) => [item.fate]);
    tally("verdict", (item) => item.answers.map((answer) => answer.outcome));
  }

  function show() {
    hideTip();
    const items = chosen();
    state.index = Math.max(0, Math.min(state.index, items.length - 1));
    $("position").textContent = items.length ? `${state.index + 1} of ${items.length}` : "0 of 0";
    $("previous").disabled = state.index === 0;
    $("next").disabled = state.index >= items.length - 1;
    $("question").replaceChildren(...(items.length ? question(items[state.index])
      : [element("p", { className: "none", textContent: "No question fits this choice." })]));
  }

  function question(item) {
    const facts = [`gold answer ${item.gold}`, item.set, item.fate, item.subject, item.level && `level ${item.level}`, item.id];
    const answers = element("div", { className: "answers" }, ...item.answers.map((answer) => card(answer, item)));
    return [
      element("p", { className: "problem", textContent: item.question }),
      element("p", { className: "meta", textContent: facts.filter(Boolean).join(" · ") }),
      answers,
    ];
  }

  function card(answer, item) {
    const solution = answer.label === "hinted solution";
    const head = element("header", {}, element("b", { textContent: answer.label }),
      element("span", { className: "verdict", textContent: answer.outcome }));
    if (answer.role) head.append(element("span", { className: "role", textContent: answer.role }));
    if (answer.tokens !== null) head.append(element("span", { className: "size", textContent: `${answer.tokens} tokens` }));
    const shaded = solution && item.tokens;
    const made = element("div", { className: `answer ${solution ? "whole" : ""}` }, head);
    made.classList.add(answer.outcome === "correct" || answer.outcome === "incorrect" ? answer.outcome : "other");
    made.append(...(shaded ? [tokens(item.tokens), legend()]
      : [element("div", { className: "text", textContent: answer.text })]));
    const boxed = answer.extracted === null ? "no boxed answer" : `answer ${answer.extracted}`;
    made.append(element("p", { className: "why", textContent: `${boxed} (${answer.reason})` }));
    return made;
  }

  const shade = (kl) => THRESHOLDS.filter((threshold) => kl >= threshold).length;

  function tokens(list) {
    const spans = list.map((token, i) => {
      const span = element("span", { className: `token k${shade(token[1])}`, textContent: token[0], tabIndex: i ? -1 : 0 });
      span.addEventListener("pointerenter", () => showTip(span, token));
      span.addEventListener("pointerleave", hideTip);
      span.addEventListener("focus", () => showTip(span, token));
      span.addEventListener("blur", hideTip);
      span.addEventListener("click", () => span.focus());
      return span;
    });
    const box = element("div", { className: "tokens" }, ...spans);
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", "The reply's tokens, shaded by the KL between teacher and student; arrow keys move from token to token, Escape leaves");
    box.addEventListener("keydown", (event) => {
      const at = spans.indexOf(document.activeElement);
      const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: spans.length - 1 }[event.key];
      if (event.key === "Escape") document.activeElement.blur();
      if (to === undefined || at < 0) return;
      event.preventDefault();
      event.stopPropagation();
      if (!spans[to]) return;
      spans[at].tabIndex = -1;
      spans[to].tabIndex = 0;
      spans[to].focus();
    });
    return box;
  }

  function legend() {
    const names = [`below ${THRESHOLDS[0]}`, ...THRESHOLDS.map((threshold) => `from ${threshold}`)];
    return element("p", { className: "legend" }, "KL(teacher, student), nats: ",
      ...names.map((name, i) => element("span", { className: `k${i}`, textContent: name })));
  }

  function table(caption, alternatives, said) {
    const rows = alternatives.map(([text, p]) => element("tr", { className: text === said ? "said" : "" },
      element("td", { textContent: visible(text) }), element("td", { textContent: p < 0.001 ? "< 0.001" : p.toFixed(3) })));
    return element("table", {}, element("caption", { textContent: caption }), element("tbody", {}, ...rows));
  }

  const visible = (text) => text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ | $/g, "␣") || "∅";

  let tipOf = null;   // the token whose tip is shown

  function showTip(span, [text, kl, teacher, student]) {
    const tip = $("tip");
    tip.replaceChildren(element("div", { textContent: `KL ${kl.toFixed(4)} at “${visible(text)}”` }),
      element("div", { className: "columns" }, table("teacher", teacher, text), table("student", student, text)));
    tip.hidden = false;
    tipOf = span;
    placeTip();
  }

  function placeTip() {
    if (!tipOf) return;
    const tip = $("tip");
    const at = tipOf.getClientRects()[0], size = tip.getBoundingClientRect();
    const below = at.bottom + 8 + size.height < innerHeight;
    tip.style.left = `${Math.max(8, Math.min(at.left, innerWidth - size.width - 8))}px`;
    tip.style.top = `${below ? at.bottom + 8 : Math.max(8, at.top - size.height - 8)}px`;
  }

  function hideTip() {
    $("tip").hidden = true;
    tipOf = null;
  }

  function walk(by) {
    state.index += by;
    show();
  }

  $("previous").addEventListener("click", () => walk(-1));
  $("next").addEventListener("click", () => walk(1));
  for (const name of ["run", "set", "fate", "verdict"]) {
    $(name).addEventListener("change", (event) => {
      state[name] = name === "run" ? Number(event.target.value) : event.target.value;
      state.index = 0;
      if (name === "run") refreshFilters();
      show();
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("select, input, textarea") || event.altKey || event.ctrlKey || event.metaKey) return;
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    walk(by);
  });
  addEventListener("scroll", placeTip, { passive: true });   // a token that is moved into view keeps its tip
  for (const button of document.querySelectorAll("button[data-id]")) {
    button.addEventListener("click", () => {
      Object.assign(state, { run: Number(button.dataset.run), set: ANY, fate: ANY, verdict: ANY });
      $("run").value = state.run;
      refreshFilters();
      state.index = chosen().findIndex((item) => item.id === button.dataset.id && item.set === button.dataset.set);
      show();
      $("reader").scrollIntoView();
    });
  }

  $("run").replaceChildren(...runs.map((run, i) => element("option", { value: i, textContent: run.name })));
  refreshFilters();
  show();
})();
