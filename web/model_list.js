// The catalogue as this page knows it: one row per entry, asked for once and then kept up to date by the host's websocket.
import { api } from "../../scripts/api.js";

export const EVENT = "hyper_sd.download";
const ROUTES = "/hyper_sd/models";

class ModelList extends EventTarget {
  rows = new Map(); // by id, in the order they are shown
  families = {}; // titles by key
  chinese = {}; // what of these texts has a Chinese one, with it
  problem = ""; // what is wrong with the person's own catalogue file
  failure = ""; // why the list could not be had
  #loading = null;
  #news = new Map(); // by id, how often the websocket has told of it: what it tells is newer than an answer on its way
  #fetching = new Set(); // ids whose file is coming

  /** Asks for the whole list, and tells of it by the event "list". */
  load() {
    this.#loading ??= this.#load().finally(() => (this.#loading = null));
    return this.#loading;
  }

  async #load() {
    const told = new Map(this.#news);
    try {
      const { families, entries, problem, chinese } = await ask("");
      const newer = (row) => this.#news.get(row.id) !== told.get(row.id) && this.rows.get(row.id);
      this.rows = new Map(entries.map((row) => [row.id, newer(row) || row]));
      Object.assign(this, { families, problem, chinese, failure: "" });
      this.rows.forEach((row) => this.#follow(row));
    } catch (error) {
      this.failure = error.message;
    }
    this.dispatchEvent(new Event("list"));
  }

  /** Takes a row the websocket has brought. */
  hear(row) {
    this.#news.set(row.id, (this.#news.get(row.id) ?? 0) + 1);
    this.#take(row);
  }

  /** Takes an entry's newest row, and tells of it by the event "row". */
  #take(row) {
    const known = this.rows.has(row.id);
    this.rows.set(row.id, row);
    this.dispatchEvent(known ? new CustomEvent("row", { detail: row }) : new Event("list"));
    this.#follow(row);
  }

  /** Tells by the event "arrived" when a file that was coming is there. */
  #follow(row) {
    if (row.state === "downloading") this.#fetching.add(row.id);
    if (row.state === "ready" && row.file && this.#fetching.delete(row.id)) {
      this.dispatchEvent(new CustomEvent("arrived", { detail: row }));
    }
  }

  /** Starts a download; options: acknowledged, set_aside. */
  start(id, options = {}) {
    return this.#change("start", { id, ...options });
  }

  /** Stops a download; what came so far is kept. */
  cancel(id) {
    return this.#change("cancel", { id });
  }

  async #change(action, fields) {
    const told = this.#news.get(fields.id);
    try {
      const { entry } = await ask(`/${action}`, fields);
      if (this.#news.get(entry.id) === told) this.#take(entry);
    } catch (error) {
      const row = this.rows.get(fields.id);
      if (row) this.#take({ ...row, problem: error.message });
    }
  }
}

/** Returns a route's JSON; its error's sentence becomes the Error's message. */
async function ask(path, fields) {
  const post = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(fields) };
  const answer = await api.fetchApi(ROUTES + path, fields ? post : {}).catch(() => {
    throw new Error("ComfyUI does not answer. Is it still running?");
  });
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(content.error ?? `ComfyUI answered with status ${answer.status}.`);
  return content;
}

export const models = new ModelList();
