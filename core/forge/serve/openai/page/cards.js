// What is served: a card for each model, with what it stands on and what it holds.

import { element } from "./element.js";
import { bytes } from "./figures.js";

const STATES = { answers: "answers", busy: "busy", dead: "does not answer" };

/** Fills `dialog` with {machine, models}; `ask(name)` puts a model into the settings. */
export function fill(dialog, { machine, models }, ask) {
  const close = () => dialog.close();
  dialog.replaceChildren(
    element("header", {}, element("h2", {}, "What is served"), element("button", { type: "button", onclick: close }, "Close")),
    element("p", { class: "soft" }, onMachine(machine)),
    element("div", { class: "grid" }, ...models.map((model) => card(model, machine, () => { ask(model.name); close(); }))),
  );
}

function onMachine(machine) {
  const gpus = machine.gpus.map((gpu) => `${gpu.name}, ${gpu.free === null ? "" : `${bytes(gpu.free)} free of `}${bytes(gpu.memory)}`);
  const held = machine.held.host === null ? "" : `, of which this server holds ${bytes(machine.held.host)}`;
  const memory = machine.memory ? `${bytes(machine.memory)} of memory${held}` : "";
  return [machine.triton && `Triton ${machine.triton}`, memory, ...(gpus.length ? gpus : ["no GPU seen from here"])].filter(Boolean).join(" \u00b7 ");
}

function card(model, machine, ask) {
  const facts = [
    ["Runs on", [model.runtime, model.version].filter(Boolean).join(" ")],
    ["Built for", built(model.built)],
    ["Recipe\u2019s sampling", sampling(model.sampling)],
    ["Published", new Date(model.published * 1000).toLocaleString()],
    ["Key", model.key.split(":").pop().slice(0, 12)],
    ["Not known to it", Object.entries(model.controls).filter(([, why]) => why).map(([name]) => name.replaceAll("_", "\u2011")).join(", ") || "nothing"],
  ];
  return element(
    "article", { class: "card" },
    element("header", {}, element("h3", {}, model.name), element("span", { class: `badge is-${model.state}` }, STATES[model.state] ?? model.state)),
    model.why && element("p", { class: "wrong" }, model.why),
    ...bars(model, machine),
    element("dl", {}, ...facts.filter(([, value]) => value).flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)])),
    element("button", { type: "button", onclick: ask }, "Ask this one"),
  );
}

/** Bars of what it holds of what there is: the fit as it came out. */
function bars(model, machine) {
  const gpu = machine.gpus.reduce((sum, each) => sum + each.memory, 0);
  const rows = [
    ["Memory", model.memory.host, machine.memory],
    ["GPU memory", model.memory.gpu, gpu],
  ].filter(([, held, all]) => held !== null && all);
  const disk = element("p", { class: "soft" }, `${bytes(model.disk)} in the repository`);
  return [...rows.map(([name, held, all]) => bar(name, held, all)), disk];
}

function bar(name, held, all) {
  const words = `${bytes(held)} of ${bytes(all)}`;
  return element(
    "div", { class: "hold" }, element("span", {}, name), element("span", {}, words),
    element("span", { class: "bar", "style:--share": held / all }),
  );
}

function built(limits) {
  const words = { max_batch_size: "requests at once", max_input_len: "tokens in a prompt", max_seq_len: "with the answer", max_beam_width: "beams" };
  return Object.entries(words).filter(([name]) => limits[name] > 1).map(([name, said]) => `${limits[name].toLocaleString("en")} ${said}`).join(", ");
}

function sampling(said) {
  const stated = Object.entries(said).filter(([, value]) => value !== null && !(Array.isArray(value) && !value.length));
  return stated.map(([name, value]) => `${name.replaceAll("_", "\u2011")} ${value}`).join(", ");
}
