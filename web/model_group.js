// A family's rows: Hyper-SD's own, and below them, folded, the other few-step methods' files.
import { models } from "./model_list.js";
import { ModelRow, isOther, make } from "./model_row.js";
import { isFound } from "./model_search.js";
import { said, words } from "./model_words.js";

const opened = new Set(); // families whose folded part is open in this page

export class ModelGroup {
  #own;
  #others;
  #asked = "";
  #openForSearch = false;

  /** Args: family: the key; rows: its rows as the routes send them; announce: says a sentence aloud. */
  constructor(family, rows, announce) {
    this.family = family;
    this.heading = models.families[family] ?? family;
    this.words = words();
    this.rows = new Map();
    const title = said(this.heading);
    this.element = make("section", "hyper-sd-group", "", { "aria-label": title });
    const head = make("h3", "", title);
    this.count = head.appendChild(make("span", "hyper-sd-count"));
    this.#own = this.#list(rows.filter((row) => !isOther(row)), announce);
    this.element.append(head, this.#own);
    const others = rows.filter(isOther);
    if (others.length) this.element.append(this.#fold(others, announce));
    this.update();
  }

  #list(rows, announce) {
    const list = make("ul", "");
    for (const row of rows) {
      const shown = new ModelRow(row, this.heading, announce);
      shown.element.dataset.id = row.id;
      this.rows.set(row.id, shown);
      list.append(shown.element);
    }
    return list;
  }

  #fold(rows, announce) {
    const fold = make("div", "hyper-sd-others");
    this.#others = this.#list(rows, announce);
    this.#others.id = `hyper-sd-others-${this.family}`;
    this.button = make("button", "hyper-sd-fold", "", { type: "button", "aria-controls": this.#others.id });
    this.button.addEventListener("click", () => this.#toggle());
    const methods = [...new Set(rows.map(({ method }) => method.split(",")[0]))].join(this.words.comma);
    this.icon = this.button.appendChild(make("span", "", "", { "aria-hidden": "true" }));
    const label = this.button.appendChild(make("span", "hyper-sd-fold-label", this.words.more));
    label.append(make("span", "hyper-sd-methods", methods));
    this.otherCount = this.button.appendChild(make("span", "hyper-sd-count"));
    fold.append(this.button, this.#others);
    return fold;
  }

  #toggle() {
    if (this.#asked) this.#openForSearch = !this.#openForSearch;
    else if (!opened.delete(this.family)) opened.add(this.family);
    this.#showFold();
  }

  #showFold() {
    if (!this.#others) return;
    const isOpen = this.#asked ? this.#openForSearch : opened.has(this.family);
    this.#others.hidden = !isOpen;
    this.button.setAttribute("aria-expanded", isOpen);
    this.icon.className = `pi ${isOpen ? "pi-chevron-down" : "pi-chevron-right"}`;
  }

  /** Shows a newer row if one is given, and counts again what is shown. */
  update(row) {
    if (row) this.rows.get(row.id)?.update(row);
    const shown = [...this.rows.values()].filter(({ element }) => !element.hidden).map((one) => one.row);
    this.count.textContent = this.#told(shown.filter((one) => !isOther(one)));
    if (this.#others) this.otherCount.textContent = this.#told(shown.filter(isOther), true);
  }

  #told(rows, withBusy = false) {
    if (!rows.length) return "";
    const of = (...states) => rows.filter(({ state }) => states.includes(state)).length;
    const busy = withBusy && of("downloading", "verifying");
    const ready = this.words.count(of("ready"), rows.length);
    return busy ? `${ready} · ${this.words.downloading(busy)}` : ready;
  }

  /** Shows only what fits the words, the folded part as well, and returns how many rows do. */
  filter(asked) {
    this.#asked = asked;
    const found = new Set();
    for (const { row, element } of this.rows.values()) {
      element.hidden = !isFound(row, this.heading, asked, models.chinese);
      if (!element.hidden) found.add(isOther(row));
    }
    this.element.hidden = !found.size;
    this.#own.hidden = !found.has(false);
    if (this.#others) this.#others.parentElement.hidden = !found.has(true);
    this.#openForSearch = found.has(true);
    this.#showFold();
    this.update();
    return [...this.rows.values()].filter(({ element }) => !element.hidden).length;
  }
}
