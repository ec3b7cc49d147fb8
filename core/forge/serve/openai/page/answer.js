// One answer on its way: its tokens as they come, its times, and what it comes to.

import { grown } from "./beams.js";
import { events, Fault } from "./door.js";
import { element } from "./element.js";
import { logarithm, milliseconds, percent } from "./figures.js";
import { judged } from "./threshold.js";
import { shown, Spelling } from "./tokens.js";

const TOPS = 5;
/** Why an answer ended, in words. */
const ENDS = { stop: "ended by itself", length: "cut at max tokens" };
const FIGURES = [["ttft", "First token"], ["itl", "Between tokens"], ["rate", "Tokens/s"], ["tokens", "Tokens"], ["sum", "Log-probability"], ["mean", "Mean probability"]];

/** What a stream's choices say, by index: {text, pieces, logProb, count, finish}. */
class Choice {
  text = "";
  pieces = [];
  logProb = 0;
  count = 0;
  finish = "";
  #spelling = new Spelling();

  /** New pieces of one event's choice. */
  hear(said) {
    const text = said.delta?.content ?? said.text ?? "";
    this.text += text;
    this.finish = said.finish_reason ?? this.finish;
    const tokens = heard(said);
    const found = tokens.length || !text ? tokens.map((token) => this.#spelling.hear(token)).filter(Boolean) : [this.#spelling.close(text)];
    this.logProb += tokens.reduce((sum, token) => sum + token.logProb, 0);
    this.count += tokens.length;
    this.pieces.push(...found);
    return found;
  }
}

/** The tokens of an event's choice, of chat and of text completions alike. */
function heard(said) {
  if (said.logprobs?.content) {
    return said.logprobs.content.map((each) => ({ text: each.token, logProb: each.logprob, tops: each.top_logprobs.map((top) => ({ text: top.token, logProb: top.logprob })) }));
  }
  const { tokens, token_logprobs: logs, top_logprobs: tops } = said.logprobs ?? {};
  return (tokens ?? []).map((text, at) => ({ text, logProb: logs[at], tops: Object.entries(tops?.[at] ?? {}).map(([token, logProb]) => ({ text: token, logProb })).sort((one, other) => other.logProb - one.logProb) }));
}

/** The path and the body that ask `card`'s model, after `history`, under `values`. */
export function question(card, history, values) {
  const { fields, system, chat } = values;
  const width = fields.beam_width ?? card.sampling.beam_width ?? 1;
  const logs = card.controls.logprobs === "";
  const tops = logs && card.controls.top_logprobs === "" ? TOPS : 0;
  const body = { model: card.name, stream: true, stream_options: { include_usage: true }, ...fields, ...(width > 1 && { n: width }) };
  if (chat) {
    const said = history.map(({ role, content }) => ({ role, content }));
    const messages = [...(system ? [{ role: "system", content: system }] : []), ...said];
    return ["/v1/chat/completions", { ...body, messages, ...(logs && { logprobs: true }), ...(tops && { top_logprobs: tops }) }];
  }
  const prompt = (system ? `${system}\n` : "") + history.map((each) => each.content).join("");
  return ["/v1/completions", { ...body, prompt, ...(logs && { logprobs: tops }) }];
}

export class Answer {
  #choices = [];
  #first = 0;
  #last = 0;
  #arrivals = 0;
  #usage = null;
  #stopper = new AbortController();

  /** `title` says whose it is; `again` asks once more. */
  constructor(title, card, values, again) {
    this.card = card;
    this.values = values;
    this.text = element("div", { class: "text", tabindex: 0, role: "group", "aria-label": `${title}: tokens of the answer; arrow keys move` });
    this.figures = Object.fromEntries(FIGURES.map(([name]) => [name, element("dd", {}, "\u2013")]));
    this.state = element("span", { class: "state" }, "waiting");
    this.after = element("div", { class: "after" });
    this.parting = element("p", { class: "soft parting" });
    this.element = element(
      "section", { class: "answer busy", "aria-label": title, "data-model": card.name },
      element("header", {}, element("h3", {}, title), this.state, element("p", { class: "soft chips" }, stated(values.fields))),
      this.text,
      element("dl", { class: "figures" }, ...FIGURES.map(([name, words]) => element("div", {}, element("dt", {}, words), this.figures[name]))),
      this.parting, this.after,
    );
    this.again = again;
  }

  get pieces() {
    return this.#choices[0]?.pieces ?? [];
  }

  /** What was said, for the next turn. */
  get said() {
    return this.#choices[0]?.text ?? "";
  }

  stop() {
    this.#stopper.abort();
  }

  /** Ask and show until it ends, however it does; true where it ended well. `grows` is called after each new piece. */
  async run(path, body, grows) {
    const began = performance.now();
    try {
      for await (const said of events(path, body, this.#stopper.signal)) {
        this.#usage = said.usage ?? this.#usage;
        for (const choice of said.choices) this.#hear(choice, body.n ?? 1, performance.now() - began);
        grows();
      }
      this.#end(body.n ?? 1, ENDS[this.#choices[0]?.finish] ?? "ended");
      return true;
    } catch (error) {
      this.#end(1, error.name === "AbortError" ? "stopped" : "failed");
      if (error.name !== "AbortError") this.#tell(error);
      return error.name === "AbortError";
    } finally {
      grows();
    }
  }

  #hear(said, several, now) {
    const choice = (this.#choices[said.index] ??= new Choice());
    const pieces = choice.hear(said);
    if (!pieces.length) return;
    this.#first ||= now;
    this.#last = now;
    this.#arrivals += 1;
    this.state.textContent = several > 1 ? "searching" : "answering";
    if (several > 1) return;
    this.text.append(...pieces.map(shown));
    this.#measure();
  }

  #measure() {
    const choice = this.#choices[0];
    if (!choice) return;
    const told = this.#choices.length > 1 ? 0 : this.#usage?.completion_tokens;
    const count = told || choice.count || choice.pieces.length;
    const streamed = this.#arrivals > this.#choices.length;
    this.#figure("ttft", streamed ? milliseconds(this.#first) : `${milliseconds(this.#last)}, whole`);
    if (streamed && count > 1) this.#figure("itl", milliseconds((this.#last - this.#first) / (count - 1)));
    this.#figure("rate", ((1000 * count) / this.#last).toFixed(1));
    this.#figure("tokens", String(count));
    if (!choice.count) return;
    this.#figure("sum", logarithm(choice.logProb));
    this.#figure("mean", percent(Math.exp(choice.logProb / choice.count)));
  }

  #figure(name, words) {
    if (this.figures[name].textContent !== words) this.figures[name].textContent = words;
  }

  #end(several, state) {
    this.element.classList.remove("busy");
    this.state.textContent = state;
    this.#measure();
    const told = this.#choices.filter(Boolean);
    if (several > 1 && told.length > 1) this.text.replaceWith((this.text = grown(told.map((each, at) => Object.assign(each, { rank: at + 1 })))));
    else if (several > 1 && told.length) this.text.replaceChildren(...told[0].pieces.map(shown));
    const known = told.filter((each) => each.count);
    if (known.length) this.after.append(judged(known, this.values.threshold));
    else if (told.length) this.after.append(element("p", { class: "soft" }, `No probabilities: ${this.card.controls.logprobs || "the model tells none"}.`));
  }

  #tell(error) {
    const gone = error instanceof Fault && error.status === 0;
    const count = this.pieces.length;
    const kept = count ? ` What came stays: ${count} token${count === 1 ? "" : "s"}.` : "";
    const words = gone ? `${capital(error.message)}.${kept} The page looks for the server and says above when it is back.` : `${capital(error.message)}.${kept}`;
    this.after.prepend(element("div", { class: "fault", role: "alert" }, element("p", {}, words), element("button", { type: "button", onclick: this.again }, "Ask again")));
    if (!(error instanceof Fault)) throw error;
  }
}

/** What is stated beyond the recipe, in a line. */
function stated(fields) {
  const words = Object.entries(fields).map(([name, value]) => `${name.replaceAll("_", "\u2011")} ${value}`);
  return words.join(" \u00b7 ") || "the recipe\u2019s settings";
}

function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1).replace(/\.$/, "");
}
