// The sidebar tab "Hyper-SD votes": one pair after the other, without names.
import { comparisons, nextPair, pictureAddress, results, undo, vote } from "./vote_client.js";
import { make } from "./model_row.js";
import { words } from "./vote_words.js";

const STYLES = ["model_panel.css", "vote_panel.css"].map((name) => new URL(name, import.meta.url).href);
const KEYS = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie", s: "skip", u: "undo" };

function addStyles() {
  for (const href of STYLES) {
    if (document.querySelector(`link[href="${href}"]`)) continue;
    document.head.append(make("link", "", "", { rel: "stylesheet", href }));
  }
}

function button(className, text, act) {
  const element = make("button", className, text, { type: "button" });
  element.addEventListener("click", act);
  return element;
}

export class VotePanel {
  #say = words();
  #name = ""; // of the collection that is shown
  #shown = null; // the pair, as the host told it
  #since = 0; // when it appeared
  #busy = false; // a vote is on its way: a key that repeats must not count twice

  constructor() {
    addStyles();
    this.element = make("section", "hyper-sd-panel hyper-sd-votes", "", { "aria-label": this.#say.title });
    this.choice = make("select", "hyper-sd-choice", "", { "aria-label": this.#say.collection });
    this.choice.addEventListener("change", () => this.#open(this.choice.value));
    this.notice = make("p", "hyper-sd-notice", "", { role: "alert" });
    this.stage = make("div", "hyper-sd-stage");
    this.voice = make("div", "hyper-sd-voice", "", { role: "status", "aria-live": "polite" });
    this.element.append(this.#head(), this.choice, this.notice, this.stage, this.voice);
    this.element.addEventListener("keydown", (event) => this.#press(event));
    this.load();
  }

  #head() {
    const head = make("header", "hyper-sd-bar-head");
    const label = { type: "button", title: this.#say.again, "aria-label": this.#say.again };
    const again = make("button", "hyper-sd-icon pi pi-refresh", "", label);
    again.addEventListener("click", () => this.load());
    head.append(make("h2", "", this.#say.title), again);
    return head;
  }

  /** Asks for the collections, and shows the one that was open, else the last. */
  load() {
    return this.#try(async () => {
      const found = await comparisons();
      const options = found.map(({ name, voted, pairs }) => {
        return make("option", "", `${name} (${this.#say.progress(voted, pairs)})`, { value: name });
      });
      this.choice.replaceChildren(...options);
      this.choice.hidden = !found.length;
      const broken = found.filter(({ problem }) => problem);
      if (!found.length) return this.stage.replaceChildren(make("p", "hyper-sd-note", this.#say.none));
      const kept = found.find(({ name }) => name === this.#name) ?? found.find(({ problem }) => !problem) ?? found[0];
      this.choice.value = kept.name;
      await this.#show(kept.name, kept.problem ? null : await nextPair(kept.name));
      if (broken.length) this.#tell(`${this.#say.damaged} ${broken.map(({ problem }) => problem).join(" ")}`);
    });
  }

  #open(name) {
    return this.#try(async () => this.#show(name, await nextPair(name)));
  }

  async #try(work) {
    if (this.#busy) return;
    this.#busy = true;
    this.#tell("");
    try {
      await work();
    } catch (error) {
      this.#tell(error.message);
    } finally {
      this.#busy = false;
    }
  }

  #tell(sentence) {
    this.notice.textContent = sentence;
    this.notice.hidden = !sentence;
  }

  /** Shows a pair, once both of its pictures are there: else the faster one would be looked at first. */
  async #show(name, shown) {
    this.#name = name;
    this.#shown = shown;
    if (!shown) return this.stage.replaceChildren();
    const progress = make("progress", "hyper-sd-voted", "", { max: shown.pairs, "aria-label": this.#say.title });
    progress.value = shown.voted;
    const count = make("p", "hyper-sd-numbers", this.#say.progress(shown.voted, shown.pairs));
    const end = shown.pair === null;
    const body = end ? [make("p", "hyper-sd-note", this.#say.done)] : await this.#pair(name, shown);
    const focused = document.activeElement?.dataset?.choice;
    this.stage.replaceChildren(progress, count, ...body, this.#tools(shown));
    this.stage.querySelector(`[data-choice="${focused}"]`)?.focus();
    this.voice.textContent = end ? this.#say.done : `${count.textContent}. ${this.#say.question}`;
    this.#since = performance.now();
  }

  async #pair(name, shown) {
    const images = ["left", "right"].map((side, number) => {
      const image = make("img", "", "", { alt: number ? this.#say.second : this.#say.first, draggable: "false" });
      image.src = pictureAddress(name, shown[side]);
      image.addEventListener("click", () => this.#vote(side));
      return image;
    });
    await Promise.all(images.map((image) => image.decode()));
    const pictures = make("div", "hyper-sd-pair");
    pictures.append(...images);
    const choices = make("div", "hyper-sd-buttons hyper-sd-choices", "", { role: "group", "aria-label": this.#say.question });
    for (const choice of ["left", "tie", "right", "skip"]) {
      const element = button("hyper-sd-button", this.#say[choice], () => this.#vote(choice));
      element.dataset.choice = choice;
      choices.append(element);
    }
    const prompt = make("p", "hyper-sd-note hyper-sd-prompt", shown.prompt);
    prompt.hidden = !shown.prompt;
    const [question, keys] = [make("p", "hyper-sd-ask", this.#say.question), make("p", "hyper-sd-note", this.#say.keys)];
    return [question, pictures, choices, prompt, keys];
  }

  #tools(shown) {
    const tools = make("div", "hyper-sd-buttons");
    const back = button("hyper-sd-button", this.#say.undo, () => this.#undo());
    back.dataset.choice = "undo";
    back.disabled = !shown.voted;
    const text = make("p", "hyper-sd-results", "", { role: "status" });
    const reveal = button("hyper-sd-button", this.#say.results, () => {
      return this.#try(async () => (text.textContent = await results(this.#name)));
    });
    reveal.title = this.#say.resultsNote;
    tools.append(back, reveal, text);
    return tools;
  }

  #vote(choice) {
    const { pair } = this.#shown ?? {};
    if (pair == null) return;
    const waited = Math.round(performance.now() - this.#since);
    return this.#try(async () => this.#show(this.#name, await vote(this.#name, pair, choice, waited)));
  }

  #undo() {
    if (!this.#shown?.voted) return;
    return this.#try(async () => this.#show(this.#name, await undo(this.#name)));
  }

  #press(event) {
    const choice = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!choice || event.ctrlKey || event.metaKey || event.altKey || event.target === this.choice) return;
    event.preventDefault();
    event.stopPropagation(); // the page's own shortcuts: S and U mean other things there
    if (event.repeat) return;
    choice === "undo" ? this.#undo() : this.#vote(choice);
  }
}
