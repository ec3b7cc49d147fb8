// The page: wires the settings, the talk and the port together.

import { Answer, question } from "./answer.js";
import { fill } from "./cards.js";
import { Fault, keepKey, lives, offered, takeKey } from "./door.js";
import { element } from "./element.js";
import { Panel, SIDES } from "./settings.js";
import { explain, legend } from "./tokens.js";

const LOOK = 2000;
const STARTERS = ["What is the capital of France? Answer in one sentence.", "Name a fruit.", "Write a haiku about rain."];

const at = (id) => document.getElementById(id);
const talk = at("talk"), prompt = at("prompt");
const histories = { a: [], b: [] };
let running = [], held = null, both = false, away = false;

const tell = (words) => { at("said").textContent = words; };
const panel = new Panel(at("panel"), () => {});

function sides() {
  return both ? SIDES : ["a"];
}

function state(words, kind) {
  at("link").className = `link ${kind}`;
  at("link").querySelector(".words").textContent = words;
}

/** What is served, again; a dialog asks for the key where the port does. */
async function load() {
  try {
    held = await offered();
    panel.cards = held.models;
    away = false;
    const dead = held.models.filter((model) => model.state === "dead").length;
    state(dead ? `${dead} of ${held.models.length} do not answer` : `${held.models.length} model${held.models.length === 1 ? "" : "s"} served`, dead ? "bad" : "good");
  } catch (error) {
    if (!(error instanceof Fault)) throw error;
    if (error.status === 401) unlock(sessionStorage.length ? error.message : "");
    else lost();
  }
}

/** The server is away: look for it until it is back. */
async function lost() {
  if (away) return;
  away = true;
  state("the server is away; looking for it", "bad");
  tell("The server is away.");
  while (away) {
    await new Promise((done) => { setTimeout(done, LOOK); });
    if (!(await lives())) continue;
    away = false;
    await load();
    if (!away) tell("The server is back.");
  }
}

function unlock(why) {
  at("lock-why").textContent = why;
  if (!at("lock").open) at("lock").showModal();
}

function busy(now) {
  at("send").hidden = now;
  at("stop").hidden = !now;
  document.body.classList.toggle("busy", now);
}

/** Ask every side the same, and show the answers beside each other. */
async function ask(words) {
  const wrong = sides().map((side) => panel.wrong(side)).find(Boolean);
  if (wrong) {
    at("settings").open = true;
    wrong.reportValidity();
    return;
  }
  at("empty").hidden = true;
  const again = () => { if (!running.length) { forget(turn); ask(words); } };
  const answers = sides().map((side) => new Answer(both ? `${side.toUpperCase()}: ${panel.card(side).name}` : panel.card(side).name, panel.card(side), panel.values(side), again));
  const turn = element("li", { class: "turn" }, element("p", { class: "asked" }, words), element("div", { class: `answers of-${answers.length}` }, ...answers.map((each) => each.element)));
  talk.append(turn);
  for (const side of sides()) histories[side].push({ role: "user", content: words, turn });
  pinned = true;
  follow();
  await answered(answers, turn);
}

async function answered(answers, turn) {
  running = answers;
  busy(true);
  tell(answers.length > 1 ? "Two answers are coming." : "The answer is coming.");
  const talks = sides().map((side) => histories[side]); // a new talk, begun meanwhile, has others
  const ends = await Promise.all(answers.map((answer, place) => answer.run(...question(answer.card, talks[place], answer.values), follow)));
  answers.forEach((answer, place) => {
    if (ends[place] || answer.said) talks[place].push({ role: "assistant", content: answer.said, turn });
    else talks[place].pop(); // what got no answer is no part of the talk: a question that is too long would keep the next ones out
  });
  running = [];
  busy(false);
  if (answers.length > 1) part(answers);
  tell(answers.map((answer) => `${answer.element.ariaLabel ?? ""}: ${answer.said || answer.state.textContent}`).join(" "));
  if (ends.includes(false) && !(await lives())) lost();
}

/** Where two answers part, at both. */
function part([one, other]) {
  if (!one.pieces.length || !other.pieces.length) return;
  let same = 0;
  while (one.pieces[same] && other.pieces[same] && one.pieces[same].same(other.pieces[same])) same += 1;
  const whole = same === one.pieces.length && same === other.pieces.length;
  for (const answer of [one, other]) {
    answer.parting.textContent = whole ? "The same, token for token." : same ? `The same for ${same} token${same === 1 ? "" : "s"}, then they part.` : "They part at the first token.";
    if (!whole) answer.text.querySelectorAll(".token")[same]?.classList.add("parts");
  }
}

/** Stay at the end where the reader is there already. */
let pinned = true;
const room = document.querySelector("main");
room.addEventListener("scroll", () => { pinned = room.clientHeight + room.scrollTop > room.scrollHeight - 80; }, { passive: true });
function follow() {
  if (pinned) room.scrollTop = room.scrollHeight;
}

/** A turn that is asked again leaves nothing behind. */
function forget(turn) {
  turn.remove();
  for (const side of SIDES) histories[side] = histories[side].filter((each) => each.turn !== turn);
}

function stop() {
  for (const answer of running) answer.stop();
}

function grow() {
  prompt.style.setProperty("height", "auto");
  prompt.style.setProperty("height", `${Math.min(prompt.scrollHeight, 200)}px`);
}

function send(words) {
  if (running.length || !words.trim() || !panel.card("a")) return;
  prompt.value = "";
  grow();
  ask(words);
}

at("composer").addEventListener("submit", (event) => { event.preventDefault(); send(prompt.value); });
prompt.addEventListener("input", grow);
prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(prompt.value); }
});
addEventListener("keydown", (event) => { if (event.key === "Escape" && running.length) stop(); });
at("stop").addEventListener("click", () => { stop(); prompt.focus(); });
at("compare").addEventListener("click", () => {
  if (running.length) return;
  both = !both;
  at("compare").ariaPressed = String(both);
  if (both) histories.b = [...histories.a];
  panel.several = both;
});
at("fresh").addEventListener("click", () => {
  stop();
  talk.replaceChildren();
  for (const side of SIDES) histories[side] = [];
  at("empty").hidden = false;
  prompt.focus();
});
at("models").addEventListener("click", async () => {
  await load();
  if (!held) return;
  fill(at("cards"), held, (name) => panel.ask("a", name));
  at("cards").showModal();
});
at("lock-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  keepKey(at("key").value.trim());
  at("lock").close();
  await load();
});

takeKey();
at("legend").replaceChildren(...legend());
at("starters").replaceChildren(...STARTERS.map((words) => element("li", {}, element("button", { type: "button", onclick: () => send(words) }, words))));
explain(talk, at("detail"), tell, (token) => {
  const name = token.closest(".answer").dataset.model;
  const card = held?.models.find((model) => model.name === name);
  return card?.controls.top_logprobs ? `What else could stand here is not told: ${card.controls.top_logprobs}.` : "";
});
if (matchMedia("(max-width: 860px)").matches) at("settings").open = false;
await load();
prompt.focus();
