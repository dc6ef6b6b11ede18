// A blind comparison: shows pairs in the order of the page's data, keeps the answers, and saves them as a small file.
const byId = (id) => document.getElementById(id);
const DATA = JSON.parse(byId("data").textContent);
const FORMAT = "hyper-sd votes 1";
const CHOICES = ["left", "right", "tie", "skip"];
const KEYS = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie", " ": "tie", s: "skip", S: "skip" };
const AHEAD = 2; // pairs whose pictures are made ready before they are shown
const STORE = `hyper-sd votes ${DATA.comparison}`;
const tall = matchMedia("(max-aspect-ratio: 3/4)"); // as in the style sheet: one picture above the other
const TALL_WORDS = { left: "upper", right: "lower", leftPicture: "upperPicture", rightPicture: "lowerPicture" };

let language = (navigator.language || "en").toLowerCase().startsWith("zh") ? "zh" : "en";
let voter = "";
let votes = []; // [number of the pair, choice, seconds], one for each pair from the first on
let paused = false;
let shown = -1; // the pair whose two pictures are on the screen, -1 while none is
let since = 0, looked = 0; // when the page was last turned to, and how long the pair was looked at before
let kept = true; // whether the browser keeps the votes over a reload
const ready = new Map(); // pictures of this pair and the next ones, by id

function word(name) {
  return TEXTS[language][(tall.matches && TALL_WORDS[name]) || name];
}

function say(text) {
  byId("status").textContent = text;
}

function randomId() {
  const bytes = new Uint8Array(8);
  crypto.getRandomValues(bytes);
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// ---- What is kept over a reload ----

function store() {
  try {
    localStorage.setItem(STORE, JSON.stringify({ voter, votes, language }));
    kept = localStorage.getItem(STORE) !== null;
  } catch {
    kept = false;
  }
  byId("memory").hidden = kept;
}

function isVote(vote, number) {
  return Array.isArray(vote) && vote[0] === number && CHOICES.includes(vote[1]) && vote[2] >= 0;
}

function restore() {
  let found = null;
  try {
    found = JSON.parse(localStorage.getItem(STORE));
  } catch {
    found = null; // not allowed, or not ours: the page begins anew, and store() says whether it can keep anything
  }
  const whole = found && /^[0-9a-f]{16}$/.test(found.voter) && Array.isArray(found.votes)
    && found.votes.length <= DATA.pairs.length && found.votes.every(isVote);
  voter = whole ? found.voter : randomId();
  votes = whole ? found.votes : [];
  if (whole && found.language in TEXTS) language = found.language;
}

// ---- The pictures ----

function address(id) {
  return DATA.folder ? `${DATA.folder}/${id}.${DATA.ending}` : `data:${DATA.type};base64,${byId(`p-${id}`).textContent}`;
}

function picture(id) {
  if (!ready.has(id)) {
    const image = new Image();
    image.draggable = false;
    image.src = address(id);
    ready.set(id, image);
  }
  return ready.get(id);
}

function prepare(number) {
  const wanted = new Set(DATA.pairs.slice(number, number + 1 + AHEAD).flat());
  for (const id of ready.keys()) if (!wanted.has(id)) ready.delete(id);
  wanted.forEach(picture);
}

async function show() {
  const number = votes.length;
  const finished = number >= DATA.pairs.length || paused;
  const cameBack = !finished && !byId("finish").hidden;
  shown = -1;
  byId("vote").hidden = finished;
  byId("finish").hidden = !finished;
  showTexts();
  if (finished) {
    byId("finished").focus();
    return;
  }
  prepare(number);
  const sides = DATA.pairs[number].map(picture);
  const whole = await Promise.all(sides.map((image) => image.decode().then(() => true, () => false)));
  if (number !== votes.length || paused) return; // undone, or paused, meanwhile
  byId("left").replaceChildren(sides[0]);
  byId("right").replaceChildren(sides[1]);
  byId("broken").hidden = whole.every(Boolean);
  for (const button of document.querySelectorAll("#vote [data-choice]")) {
    button.disabled = !whole.every(Boolean) && button.dataset.choice !== "skip";
  }
  [shown, since, looked] = [number, performance.now(), 0];
  byId("vote").dataset.pair = number;
  showTexts();
  if (cameBack) byId("question").focus();
}

// ---- The texts ----

function showTexts() {
  const texts = TEXTS[language], all = DATA.pairs.length, number = Math.min(votes.length + 1, all);
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  document.title = texts.title;
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = word(element.dataset.text);
  byId("question").textContent = DATA.question || texts.question;
  const prompt = DATA.prompts[votes.length] || "";
  byId("prompt").textContent = prompt;
  byId("prompt").hidden = !prompt;
  byId("progress").max = all;
  byId("progress").value = votes.length;
  byId("progress").setAttribute("aria-label", texts.progress);
  byId("count").textContent = texts.pair(number, all);
  const other = language === "en" ? "zh" : "en";
  byId("language").textContent = TEXTS[other].language;
  byId("language").lang = other;
  byId("undo").disabled = votes.length === 0;
  byId("broken").textContent = texts.broken;
  for (const side of ["left", "right"]) {
    const image = byId(side).firstChild;
    if (image) image.alt = word(`${side}Picture`);
  }
  if (!byId("finish").hidden) showFinish(texts, all);
}

function showFinish(texts, all) {
  const done = votes.length === all;
  byId("finished").textContent = done ? texts.done(all) : texts.paused(votes.length, all);
  byId("back").textContent = done ? texts.change : texts.goOn;
  byId("another").hidden = !done;
  byId("share").hidden = !shareable();
  byId("text").setAttribute("aria-label", texts.votes);
  byId("text").value = ballot();
}

// ---- Answers ----

function seconds() {
  return Math.round(looked + (document.hidden ? 0 : performance.now() - since)) / 1000;
}

function vote(choice) {
  if (shown !== votes.length || (!byId("broken").hidden && choice !== "skip")) return; // nobody has seen this pair yet
  votes.push([shown, choice, seconds()]);
  store();
  say("");
  show();
}

function undo() {
  if (!votes.length) {
    say(TEXTS[language].nothing);
    return;
  }
  votes.pop();
  paused = false;
  store();
  say(TEXTS[language].again(votes.length + 1));
  show();
}

function pause() {
  paused = true;
  say("");
  show();
}

// ---- The file ----

function ballot() {
  const lines = votes.map(([pair, choice, time]) => `${pair} ${choice} ${Math.round(time * 1000)}`);
  const check = sha256([FORMAT, DATA.comparison, voter, ...lines].join("\n"));
  return JSON.stringify({ format: FORMAT, comparison: DATA.comparison, voter, votes, check });
}

function fileName() {
  return `votes-${DATA.comparison.slice(0, 8)}-${voter.slice(0, 8)}.json`;
}

function shareable() {
  // Some browsers share no .json, but plain text; what reads the votes does not ask for the ending.
  const files = [["", "application/json"], [".txt", "text/plain"]].map(
    ([ending, type]) => new File([ballot()], fileName() + ending, { type }),
  );
  return files.find((file) => navigator.canShare?.({ files: [file] }));
}

function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([ballot()], { type: "application/json" }));
  link.download = fileName();
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  say(TEXTS[language].saved(fileName()));
}

async function share() {
  try {
    await navigator.share({ files: [shareable()] });
    say(TEXTS[language].shared);
  } catch {
    say(TEXTS[language].notShared);
  }
}

function another() {
  if (!confirm(TEXTS[language].sure)) return;
  [voter, votes, paused] = [randomId(), [], false];
  store();
  say("");
  show();
}

// ---- What people do ----

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.target.closest("textarea, summary")) return;
  if (event.key === " " && event.target.closest("button")) return; // presses the button that has the focus
  const voting = !byId("vote").hidden;
  if (event.key === "Backspace" || event.key === "z" || event.key === "Z") undo();
  else if (voting && event.key in KEYS) vote(KEYS[event.key]);
  else return;
  event.preventDefault();
}

function onClick(event) {
  const button = event.target.closest("button");
  if (!button) return;
  if (event.detail > 0) button.blur(); // pressed by hand, so that the space bar does not press it again
  if (button.dataset.choice) vote(button.dataset.choice);
}

function back() {
  if (votes.length === DATA.pairs.length) undo();
  else {
    paused = false;
    show();
  }
}

function switchLanguage() {
  language = language === "en" ? "zh" : "en";
  store();
  say("");
  showTexts();
}

for (const action of [undo, pause, save, share, back, another]) byId(action.name).addEventListener("click", action);
byId("language").addEventListener("click", switchLanguage);
document.addEventListener("click", onClick);
document.addEventListener("keydown", onKey);
document.addEventListener("visibilitychange", () => {
  if (document.hidden) looked += performance.now() - since;
  else since = performance.now();
});
tall.addEventListener("change", showTexts);
addEventListener("storage", (event) => {
  if (event.key !== STORE) return;
  restore(); // another window of this page went on
  show();
});
addEventListener("beforeunload", (event) => {
  if (!kept && votes.length) event.preventDefault();
});
restore();
store();
show();
