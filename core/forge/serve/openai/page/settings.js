// The settings of both sides, row by row: a side's model says which of them it knows, and why it does not know the others.

import { element } from "./element.js";

export const SIDES = ["a", "b"];
const NAMES = { a: "A", b: "B" };

const SEED = 2 ** 31;
const UNDRAWN = "a beam search draws nothing";

/** `field` is the API's word, `usual` the recipe's; `drawn` ones mean nothing to a beam search, which draws nothing; an `own` one
 * is the page's, and `needs` what that field has the model tell. */
const ROWS = [
  { title: "Picking each token" },
  { field: "temperature", name: "Temperature", least: 0, most: 2, step: 0.1, drawn: true, help: "0 takes the likeliest" },
  { field: "top_k", name: "Top-k", least: 0, step: 1, drawn: true, help: "the k likeliest; 0 is all" },
  { field: "top_p", name: "Top-p", least: 0.01, most: 1, step: 0.05, drawn: true, help: "the likeliest that make p" },
  { field: "min_p", name: "Min-p", least: 0, most: 1, step: 0.05, drawn: true, help: "p of the likeliest\u2019s" },
  { field: "seed", name: "Seed", least: 0, step: 1, drawn: true, help: "draws the same again" },
  { field: "beam_width", name: "Beam width", least: 1, most: 32, step: 1, help: "above 1: a tree of beams" },
  { title: "Repeating" },
  { field: "repetition_penalty", name: "Repetition", least: 0.1, step: 0.1, help: "above 1 repeats less" },
  { field: "presence_penalty", name: "Presence", least: -2, most: 2, step: 0.1, help: "for what was said at all" },
  { field: "frequency_penalty", name: "Frequency", least: -2, most: 2, step: 0.1, help: "for each time it was said" },
  { title: "Ending" },
  { field: "max_tokens", name: "Max tokens", least: 1, step: 1, help: "no more than so many" },
  { field: "stop", name: "Stop text", text: true, help: "ends before this text" },
  { title: "Judging" },
  { field: "threshold", name: "Threshold", most: 0, step: 1, own: true, needs: "logprobs", help: "least log-probability" },
];
const FIELDS = ROWS.filter((row) => row.field);

export class Panel {
  #inputs = { a: {}, b: {} };
  #models = { a: null, b: null };
  #cards = [];
  #selects = {};
  #systems = {};
  #forms = {};
  #notes = {};

  /** Lays itself into `root`; `changed(side)` is called after every change. */
  constructor(root, changed) {
    this.changed = changed;
    root.replaceChildren(this.#tops(), this.#table());
    this.root = root;
    this.several = false;
  }

  /** Whether both sides are there; the second begins as the first is. */
  set several(both) {
    this.root?.classList.toggle("several", both);
    if (both && !this.#models.b) this.#copy();
    for (const made of document.querySelectorAll(".side-b")) made.hidden = !both;
  }

  /** What can be asked: `cards` as /ui/models has them. A side keeps its model where that is still there. */
  set cards(cards) {
    this.#cards = cards;
    for (const side of SIDES) {
      const held = this.#selects[side].value;
      this.#selects[side].replaceChildren(...cards.map((card) => element("option", { value: card.name }, card.name)));
      const stays = cards.some((card) => card.name === held);
      if (stays) this.#selects[side].value = held;
      if (side === "a" || this.#models.b) this.#choose(side);
    }
  }

  /** The card of a side's model. */
  card(side) {
    return this.#models[side];
  }

  ask(side, name) {
    this.#selects[side].value = name;
    this.#choose(side);
  }

  /** What is stated of a side: fields of the API, with `system`, `chat` and `threshold` beside. */
  values(side) {
    const fields = {};
    for (const row of FIELDS) {
      const input = this.#inputs[side][row.field];
      if (input.value === "" || input.readOnly || row.own) continue;
      fields[row.field] = row.text ? input.value : Number(input.value);
    }
    const { value, readOnly } = this.#inputs[side].threshold;
    const threshold = readOnly ? "" : value;
    return {
      fields,
      system: this.#systems[side].value.trim(),
      chat: this.#forms[side].value === "chat",
      threshold: threshold === "" ? null : Number(threshold),
    };
  }

  /** The first input that holds what it may not; null where all is well. */
  wrong(side) {
    return Object.values(this.#inputs[side]).find((input) => !input.checkValidity()) ?? null;
  }

  #tops() {
    const made = SIDES.map((side) => {
      const select = (this.#selects[side] = element("select", { id: `model-${side}`, onchange: () => this.#choose(side) }));
      const form = (this.#forms[side] = element(
        "select", { id: `form-${side}`, "aria-describedby": `form-note-${side}`, onchange: () => this.changed(side) },
        element("option", { value: "chat" }, "as a chat, in its template"), element("option", { value: "text" }, "as it is, to be gone on with"),
      ));
      const system = (this.#systems[side] = element("textarea", { id: `system-${side}`, rows: 1, placeholder: "none" }));
      return element(
        "div", { class: `side-${side}` },
        element("h3", { class: "side" }, NAMES[side]),
        element("label", { for: `model-${side}` }, "Model"), select,
        element("label", { for: `form-${side}` }, "The prompt goes"), form, element("small", { id: `form-note-${side}` }),
        element("label", { for: `system-${side}` }, "System text"), system,
      );
    });
    return element("div", { class: "tops" }, ...made);
  }

  #table() {
    const rows = ROWS.map((row) => (row.title ? element("h3", {}, row.title) : this.#row(row)));
    const head = element("div", { class: "row heads", "aria-hidden": true }, element("span"), ...SIDES.map((side) => element("span", { class: `side-${side}`, id: `name-${side}` }, NAMES[side])));
    return element("div", { class: "table" }, head, ...rows);
  }

  #row(row) {
    const id = `row-${row.field}`;
    const cells = SIDES.map((side) => {
      const input = element("input", {
        id: `${row.field}-${side}`, type: row.text ? "text" : "number", inputmode: row.text ? "text" : "decimal",
        min: row.least, max: row.most, step: row.text ? null : "any", "data-step": row.step,
        "aria-labelledby": `${id} name-${side}`, "aria-describedby": `${id}-help ${id}-note`,
        oninput: () => { this.#settle(side); this.changed(side); },
        onkeydown: (event) => this.#nudge(event, side, row),
      });
      this.#inputs[side][row.field] = input;
      const dice = row.field === "seed" && element("button", { type: "button", class: "dice", "aria-label": `Draw a seed, ${NAMES[side]}`, title: "Draw a seed", onclick: () => this.#draw(side) }, "\u2684");
      return element("span", { class: `cell side-${side}` }, input, dice);
    });
    const note = (this.#notes[row.field] = element("small", { class: "note", id: `${id}-note` }));
    return element("div", { class: "row" }, element("label", { id, for: `${row.field}-a` }, row.name, element("small", { id: `${id}-help` }, row.help)), ...cells, note);
  }

  #draw(side) {
    const input = this.#inputs[side].seed;
    if (!input.readOnly) input.value = Math.floor(Math.random() * SEED);
    this.changed(side);
  }

  /** Arrow keys step from the recipe's value where nothing is stated yet. */
  #nudge(event, side, row) {
    const step = { ArrowUp: row.step, ArrowDown: -row.step }[event.key];
    const input = this.#inputs[side][row.field];
    if (!step || row.text || input.readOnly) return;
    event.preventDefault();
    const from = Number(input.value || input.placeholder) || 0;
    const to = Math.min(row.most ?? Infinity, Math.max(row.least ?? -Infinity, from + step));
    input.value = Number(to.toFixed(4));
    this.#settle(side);
    this.changed(side);
  }

  #copy() {
    for (const row of FIELDS) this.#inputs.b[row.field].value = this.#inputs.a[row.field].value;
    this.#systems.b.value = this.#systems.a.value;
    this.#selects.b.value = this.#selects.a.value;
    this.#choose("b");
    this.#forms.b.value = this.#forms.a.value;
  }

  #choose(side) {
    const card = this.#cards.find((each) => each.name === this.#selects[side].value) ?? null;
    this.#models[side] = card;
    const [chat] = this.#forms[side].options;
    chat.disabled = Boolean(card?.chat);
    if (card?.chat) this.#forms[side].value = "text";
    document.getElementById(`form-note-${side}`).textContent = card?.chat ? `No chat: ${card.chat}` : "";
    this.#settle(side);
    this.changed(side);
  }

  /** What the model does not know is locked, with its reason; what is left blank shows the recipe's value. */
  #settle(side) {
    const card = this.#models[side];
    const width = Number(this.#inputs[side].beam_width.value || card?.sampling.beam_width || 1);
    for (const row of FIELDS) {
      const input = this.#inputs[side][row.field];
      const why = card?.controls[row.needs ?? row.field] || (row.drawn && width > 1 ? UNDRAWN : "");
      const usual = card?.sampling[row.field];
      input.readOnly = Boolean(why);
      input.ariaDisabled = String(Boolean(why));
      input.placeholder = why ? "\u2013" : Array.isArray(usual) ? usual.join(" ") : usual ?? (row.own ? "none" : "");
      input.dataset.why = why;
    }
    if (card?.built.max_beam_width) this.#inputs[side].beam_width.max = card.built.max_beam_width;
    for (const row of FIELDS) this.#note(row);
  }

  #note(row) {
    const there = SIDES.filter((side) => side === "a" || this.#models.b);
    const told = there.map((side) => [side, this.#inputs[side][row.field].dataset.why]).filter(([, why]) => why);
    const same = told.length === there.length && new Set(told.map(([, why]) => why)).size === 1;
    let words = same ? told[0][1] : told.map(([side, why]) => `${NAMES[side]}: ${why}`).join("; ");
    // Of five rows each would say the same: the beams' own row says it once for those who see.
    const undrawn = there.some((side) => this.#inputs[side].temperature.dataset.why === UNDRAWN);
    if (row.field === "beam_width" && !words && undrawn) words = `${UNDRAWN}: what is locked above means nothing to it`;
    this.#notes[row.field].textContent = words;
    this.#notes[row.field].classList.toggle("unseen", told.length > 0 && told.every(([, why]) => why === UNDRAWN));
  }
}
