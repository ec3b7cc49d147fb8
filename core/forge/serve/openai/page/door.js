// Speaks to the OpenAI port that this page came from, and to no other.

const KEPT = "forge-key";

/** What the port answered that is no answer: `status` is HTTP's, 0 where nothing came back at all. */
export class Fault extends Error {
  constructor(status, message, code = "") {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** The key out of the address, kept for this tab, and taken out of the address so that nobody copies it along. */
export function takeKey() {
  const said = new URLSearchParams(location.hash.slice(1)).get("key");
  if (said) {
    sessionStorage.setItem(KEPT, said);
    history.replaceState(null, "", location.pathname);
  }
}

export function keepKey(key) {
  sessionStorage.setItem(KEPT, key);
}

/** What is offered: {machine, models}. */
export async function offered() {
  return (await asked("/ui/models")).json();
}

/** Whether the port answers at all. */
export async function lives() {
  try {
    return (await fetch("/live", { cache: "no-store" })).ok;
  } catch {
    return false;
  }
}

/**
 * The events of a streamed completion, as they come. `path` is chat or text; aborting `signal` ends it at the server too.
 * Fault for what is refused, for an error in the middle, and for a connection that breaks before the end was said.
 */
export async function* events(path, body, signal) {
  const response = await asked(path, body, signal);
  let rest = "";
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { done, value } = await read(reader);
      if (done) throw new Fault(0, "the connection broke before the answer was whole");
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const data = part.replace(/^data: /, "");
        if (data === "[DONE]") return;
        const said = JSON.parse(data);
        if (said.error) throw fault(200, said);
        yield said;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Fault(0, "the connection broke before the answer was whole");
  }
}

async function asked(path, body, signal) {
  const key = sessionStorage.getItem(KEPT);
  const headers = { ...(key && { authorization: `Bearer ${key}` }), ...(body && { "content-type": "application/json" }) };
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Fault(0, "the server does not answer");
  }
  if (!response.ok) throw fault(response.status, await response.json().catch(() => ({})));
  return response;
}

function fault(status, said) {
  return new Fault(status, said.error?.message ?? `HTTP ${status}`, said.error?.code ?? "");
}
