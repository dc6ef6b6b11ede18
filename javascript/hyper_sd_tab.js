// The host translates what is added to the page; a row's button changes its words in place, so it is looked up again here.
onAfterUiUpdate(() => {
  if (!hasLocalization()) return;
  gradioApp().querySelectorAll("#tab_hyper_sd_models button").forEach(processNode);
});
