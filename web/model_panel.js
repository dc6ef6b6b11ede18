// The sidebar panel "Hyper-SD models": every entry of the catalogue, by family, the scorers' files last.
import { models } from "./model_list.js";
import { ModelRow, make } from "./model_row.js";

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
  #rows = new Map();
  #counts = new Map();
  #shape = ""; // what the rows are made of, apart from how they stand

  constructor() {
    addStyle();
    this.element = make("section", "hyper-sd-panel", "", { "aria-label": "Hyper-SD models" });
    this.list = make("div", "hyper-sd-list");
    this.notice = make("p", "hyper-sd-notice", "", { role: "alert" });
    this.voice = make("div", "hyper-sd-voice", "", { role: "status", "aria-live": "polite" });
    this.element.append(this.#head(), this.notice, this.list, this.voice);
    const { signal } = this.#listening;
    models.addEventListener("list", () => this.#build(), { signal });
    models.addEventListener("row", ({ detail }) => this.#update(detail), { signal });
    this.#build();
  }

  /** Stops listening; the downloads go on. */
  close() {
    this.#listening.abort();
  }

  #head() {
    const head = make("header", "hyper-sd-bar-head");
    const label = "Look again";
    const again = make("button", "hyper-sd-icon pi pi-refresh", "", { type: "button", title: label, "aria-label": label });
    again.addEventListener("click", () => models.load());
    head.append(make("h2", "", "Hyper-SD models"), again);
    return head;
  }

  /** Shows the list; rows that are there already are kept, with what a person was doing in them. */
  #build() {
    const own = models.problem && `Your own catalogue file is left out: ${models.problem}`;
    this.notice.textContent = models.failure || own || "";
    this.notice.hidden = !this.notice.textContent;
    const lasting = ({ id, title, family, size, licence }) => [id, title, family, size, licence];
    const shape = JSON.stringify([...models.rows.values()].map(lasting));
    if (shape === this.#shape) {
      models.rows.forEach((row) => this.#update(row));
      return;
    }
    this.#shape = shape;
    this.#rows.clear();
    this.list.replaceChildren(...groups(models.rows.values()).map(([family, rows]) => this.#group(family, rows)));
  }

  #group(family, rows) {
    const title = models.families[family] ?? family;
    const section = make("section", "hyper-sd-group", "", { "aria-label": title });
    const heading = make("h3", "", title);
    this.#counts.set(family, heading.appendChild(make("span", "hyper-sd-count")));
    const list = make("ul", "");
    for (const row of rows) {
      const shown = new ModelRow(row, title, (sentence) => (this.voice.textContent = sentence));
      shown.element.dataset.id = row.id;
      this.#rows.set(row.id, shown);
      list.append(shown.element);
    }
    section.append(heading, list);
    this.#count(family);
    return section;
  }

  #update(row) {
    this.#rows.get(row.id)?.update(row);
    this.#count(row.family);
  }

  #count(family) {
    const rows = [...models.rows.values()].filter((row) => row.family === family);
    const ready = rows.filter((row) => row.state === "ready").length;
    this.#counts.get(family).textContent = `${ready} of ${rows.length} ready`;
  }
}
