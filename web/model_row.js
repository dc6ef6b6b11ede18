// One entry of the panel: what it is, how it stands, and the one button that fits its state.
import { models } from "./model_list.js";
import { said, words } from "./model_words.js";

const HYPER_SD = "Hyper-SD";
const UNITS = ["B", "kB", "MB", "GB"];
const accepted = new Set(); // ids whose licence was accepted in this page

/** Tells whether a row's file was distilled by another few-step method. */
export const isOther = ({ method }) => method !== "" && method !== HYPER_SD;

export function make(tag, className, text = "", attributes = {}) {
  const element = Object.assign(document.createElement(tag), { className, textContent: text });
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/** Returns a size in the words of format_bytes in disk.py: "269 MB". */
export function formatBytes(count) {
  let unit = 0;
  for (; count >= 999.5 && unit < 3; unit++) count /= 1000;
  return `${count.toFixed(unit < 3 ? 0 : 2)} ${UNITS[unit]}`;
}

/** Returns a duration in the words of format_duration in models/progress.py: "14 s", "3 min 20 s", "1 h 5 min". */
export function formatDuration(seconds) {
  const whole = Math.max(Math.round(seconds), seconds > 0 ? 1 : 0); // "0 s left" would say that it has ended
  const [large, small] = whole >= 3600 ? ["h", "min"] : ["min", "s"];
  const count = whole >= 3600 ? Math.round(whole / 60) : whole;
  const parts = [[Math.floor(count / 60), large], [count % 60, small]];
  return parts.filter(([number]) => number).map((part) => part.join(" ")).join(" ") || "0 s";
}

function percent(row) {
  return row.bytes_total ? Math.min(100, Math.floor((100 * row.bytes_done) / row.bytes_total)) : 0;
}

/** Returns how far a download is, in words. */
function progressText(row) {
  const parts = [`${percent(row)} %`];
  if (row.state === "downloading") {
    const [done, whole] = [row.bytes_done, row.bytes_total].map(formatBytes);
    if (row.bytes_total || row.bytes_done) parts.push(row.bytes_total ? words().of(done, whole) : done);
    if (row.rate) parts.push(`${formatBytes(row.rate)}/s`);
    if (row.eta_seconds != null && row.bytes_done < row.bytes_total) {
      parts.push(words().left(formatDuration(row.eta_seconds)));
    }
  }
  return parts.join(" · ");
}

/** Returns what is wrong and what to do; the look at the folders tells only what is wrong. */
function problemText({ state, problem }) {
  if (state !== "corrupt" || problem.endsWith(".")) return problem;
  return words().damaged(problem);
}

function link(text, url, label) {
  return make("a", "", text, { href: url, target: "_blank", rel: "noreferrer", title: label, "aria-label": label });
}

/** Returns an entry's title without the family, which stands above it: "SDXL, 2-step LoRA", "PCM for SDXL, 2 steps". */
function withoutFamily(title, family) {
  const start = [", ", "，"].map((comma) => family + comma).find((start) => title.startsWith(start));
  if (start) return title.slice(start.length);
  return [` for ${family}`, `（用于 ${family}）`].reduce((text, part) => text.replace(part, ""), title);
}

export class ModelRow {
  /** Args: row: as the routes send it; family: the group's title, left out of the entry's; announce: says a sentence aloud. */
  constructor(row, family, announce) {
    this.row = row;
    this.announce = announce;
    this.words = words();
    this.title = said(row.title);
    const name = withoutFamily(this.title, family);
    this.name = name.charAt(0).toUpperCase() + name.slice(1);
    this.element = make("li", "hyper-sd-model");
    this.state = make("span", "hyper-sd-state");
    this.button = make("button", "hyper-sd-button", "", { type: "button" });
    this.button.addEventListener("click", () => this.#press());
    this.bar = make("div", "hyper-sd-bar", "", { role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100 });
    this.bar.setAttribute("aria-label", this.title);
    this.fill = this.bar.appendChild(make("div", "hyper-sd-fill"));
    this.numbers = make("div", "hyper-sd-numbers");
    this.note = make("p", "hyper-sd-note");
    this.problem = make("p", "hyper-sd-problem");
    this.element.append(this.#head(), this.bar, this.numbers, this.note, this.problem, this.#question());
    this.update(row);
  }

  #head() {
    const { licence, method, models: file, size } = this.row;
    const facts = make("div", "hyper-sd-facts");
    facts.append(make("span", "", size ? formatBytes(size) : this.words.sizeUnknown), this.state);
    const licenceTitle = said(licence.title);
    facts.append(link(licence.acknowledge ? licenceTitle : this.words.licence, licence.url, licenceTitle));
    const isNamed = method.split(/[ ,]+/).every((word) => this.row.title.includes(word));
    if (isOther(this.row) && !isNamed) facts.prepend(make("span", "", method));
    const head = make("div", "hyper-sd-head");
    head.append(make("div", "hyper-sd-title", this.name, { title: `${file.directory}: ${file.name}` }), this.button, facts);
    return head;
  }

  /** Returns the step between button and download for files whose licence has to be accepted. */
  #question() {
    const { licence } = this.row;
    this.question = make("div", "hyper-sd-question", "", { role: "group", "aria-label": this.words.licenceGroup });
    this.licence = link(this.words.read, licence.url, said(licence.title));
    const yes = make("button", "hyper-sd-button hyper-sd-main", this.words.accept, { type: "button" });
    yes.addEventListener("click", () => {
      accepted.add(this.row.id);
      this.#ask(false);
      this.#start();
    });
    const no = make("button", "hyper-sd-button", this.words.notNow, { type: "button" });
    no.addEventListener("click", () => this.#ask(false));
    const buttons = make("div", "hyper-sd-buttons");
    buttons.append(yes, no);
    this.question.append(make("p", "", said(licence.title)), this.licence, buttons);
    this.question.hidden = true;
    return this.question;
  }

  /** Shows or hides the question; the keyboard's focus goes with it. */
  #ask(shown) {
    this.question.hidden = !shown;
    this.button.hidden = shown;
    (shown ? this.licence : this.button).focus();
  }

  #press() {
    const { id, state, licence } = this.row;
    if (state === "downloading" || state === "verifying") {
      this.button.disabled = true; // until the host says that it has ended
      this.button.textContent = this.words.stopping;
      models.cancel(id);
    } else if (licence.acknowledge && !accepted.has(id)) {
      this.#ask(true);
    } else {
      this.#start();
    }
  }

  #start() {
    const { id, state } = this.row;
    models.start(id, { acknowledged: accepted.has(id), set_aside: state === "corrupt" });
  }

  /** Shows a newer row. */
  update(row) {
    const changed = row.state !== this.row.state || row.problem !== this.row.problem;
    this.row = row;
    const busy = row.state === "downloading" || row.state === "verifying";
    this.element.dataset.state = row.state;
    this.state.textContent = this.words.states[row.state];
    this.state.title = row.file;
    this.#updateButton(changed);
    this.bar.hidden = this.numbers.hidden = !busy && row.state !== "partial";
    this.fill.style.width = `${percent(row)}%`;
    this.bar.setAttribute("aria-valuenow", percent(row));
    this.bar.setAttribute("aria-valuetext", progressText(row));
    this.numbers.textContent = progressText(row);
    this.note.textContent = said(row.note);
    this.note.hidden = !row.note;
    this.problem.textContent = problemText(row);
    this.problem.hidden = !row.problem;
    if (changed) this.announce([this.title, this.words.states[row.state], busy ? "" : row.problem].filter(Boolean).join(": "));
  }

  #updateButton(changed) {
    const { state } = this.row;
    if (!changed && this.button.textContent) return; // what was pressed stays pressed
    this.button.textContent = this.words.buttons[state];
    this.button.disabled = state === "ready";
    this.button.setAttribute("aria-label", `${this.words.buttons[state]}: ${this.title}`);
  }
}
