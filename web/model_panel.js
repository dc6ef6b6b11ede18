// The sidebar panel "Hyper-SD models": every entry of the catalogue, by family, the scorers' files last.
import { ModelGroup } from "./model_group.js";
import { models } from "./model_list.js";
import { make } from "./model_row.js";
import { words } from "./model_words.js";

const STYLE = new URL("model_panel.css", import.meta.url).href;

function addStyle() {
  if (document.querySelector(`link[href="${STYLE}"]`)) return;
  document.head.append(make("link", "", "", { rel: "stylesheet", href: STYLE }));
}

/** Returns [family, its rows] in the catalogue's order. */
function groups(rows) {
  const found = new Map();
  for (const row of rows) found.set(row.family, [...(found.get(row.family) ?? []), row]);
  return [...found];
}

export class ModelPanel {
  #listening = new AbortController();
  #groups = new Map();
  #shape = ""; // what the rows are made of, apart from how they stand

  constructor() {
    addStyle();
    this.words = words();
    this.element = make("section", "hyper-sd-panel", "", { "aria-label": this.words.title });
    this.list = make("div", "hyper-sd-list");
    this.notice = make("p", "hyper-sd-notice", "", { role: "alert" });
    this.nothing = make("p", "hyper-sd-nothing");
    this.voice = make("div", "hyper-sd-voice", "", { role: "status", "aria-live": "polite" });
    this.element.append(this.#head(), this.#search(), this.notice, this.nothing, this.list, this.voice);
    const { signal } = this.#listening;
    models.addEventListener("list", () => this.#build(), { signal });
    models.addEventListener("row", ({ detail }) => this.#groups.get(detail.family)?.update(detail), { signal });
    this.#build();
  }

  /** Stops listening; the downloads go on. */
  close() {
    this.#listening.abort();
  }

  #head() {
    const head = make("header", "hyper-sd-bar-head");
    const label = this.words.again;
    const again = make("button", "hyper-sd-icon pi pi-refresh", "", { type: "button", title: label, "aria-label": label });
    again.addEventListener("click", () => models.load());
    head.append(make("h2", "", this.words.title), again);
    return head;
  }

  #search() {
    const { search: label, example } = this.words;
    const attributes = { type: "search", placeholder: example, "aria-label": label, title: label, spellcheck: "false" };
    this.field = make("input", "hyper-sd-search", "", attributes);
    this.field.addEventListener("input", () => this.#say(this.#filter()));
    this.field.addEventListener("keydown", (event) => this.#escape(event));
    return this.field;
  }

  /** Empties the field; the page's own Escape is for when it is empty. */
  #escape(event) {
    if (event.key !== "Escape" || event.isComposing || !this.field.value) return;
    event.preventDefault();
    event.stopPropagation();
    this.field.value = "";
    this.#say(this.#filter());
  }

  /** Shows the list; rows that are there already are kept, with what a person was doing in them. */
  #build() {
    const own = models.problem && `${this.words.ownCatalogue} ${models.problem}`;
    this.notice.textContent = models.failure || own || "";
    this.notice.hidden = !this.notice.textContent;
    const lasting = ({ id, title, family, method, size, licence }) => [id, title, family, method, size, licence];
    const shape = JSON.stringify([...models.rows.values()].map(lasting));
    if (shape === this.#shape) {
      models.rows.forEach((row) => this.#groups.get(row.family).update(row));
      return;
    }
    this.#shape = shape;
    const say = (sentence) => this.#say(sentence);
    this.#groups = new Map(groups(models.rows.values()).map(([key, rows]) => [key, new ModelGroup(key, rows, say)]));
    this.list.replaceChildren(...[...this.#groups.values()].map((group) => group.element));
    this.#filter();
  }

  #say(sentence) {
    this.voice.textContent = sentence;
  }

  /** Shows what fits the words in the field, and returns what was found, in words. */
  #filter() {
    const asked = this.field.value.trim();
    const count = [...this.#groups.values()].reduce((sum, group) => sum + group.filter(asked), 0);
    this.nothing.textContent = asked && !count ? this.words.nothing(asked) : "";
    this.nothing.hidden = !this.nothing.textContent;
    return this.nothing.textContent || this.words.found(count);
  }
}
