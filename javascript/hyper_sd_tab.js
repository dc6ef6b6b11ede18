// The host translates what is added to the page; a row's button changes its words in place, so it is looked up again here.
onAfterUiUpdate(() => {
  if (!hasLocalization()) return;
  gradioApp().querySelectorAll("#tab_hyper_sd_models button").forEach(processNode);
});

let hyperSDOpened = null; // the parts that were open before the search

/** Opens every part of the list for a search; once its words are gone, each is as it was before. */
function hyperSDSearch(asked) {
  const parts = [...gradioApp().querySelectorAll("[id^=hyper_sd_part_]")].map((part) => part.querySelector(".label-wrap"));
  const isOpen = (label) => label.classList.contains("open");
  const before = hyperSDOpened ?? parts.filter(isOpen);
  hyperSDOpened = asked.trim() ? before : null;
  for (const label of parts) if (isOpen(label) !== Boolean(hyperSDOpened || before.includes(label))) label.click();
}
