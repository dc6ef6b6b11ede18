"""What a node says in ComfyUI's page: it stays after the job, whole and once, and comes back with a run's outputs."""

GIVEN = "JSON.stringify([(await app.graphToPrompt()).output[window.loader.id], window.loader.serialize().widgets_values])"
RUN = """async () => {
  app.graph.clear();
  const types = ['HyperSDDemoModel', 'HyperSDLoraLoader', 'PreviewAny'];
  const [model, loader, use] = types.map((type) => LiteGraph.createNode(type));
  [model, loader, use].forEach((node, i) => { node.pos = [60 + 400 * i, 200]; app.graph.add(node); });
  model.connect(0, loader, 0);
  loader.connect(4, use, 0);
  window.loader = loader;
  window.before = GIVEN;
  const ended = new Promise((resolve) => app.api.addEventListener('execution_success', resolve, { once: true }));
  await app.queuePrompt(0, 1);
  await ended;
}""".replace("GIVEN", GIVEN)
SAID = "window.loader.widgets.filter((widget) => widget.name === 'hyper_sd_text').map((widget) => widget.value)"
CHOSEN = "app.nodeOutputs[app.graph._nodes[2].id]?.text?.[0]"  # the same text, as the host's own node received it
BACK = """async () => {
  const [outputs, saved] = [app.nodeOutputs, app.graph.serialize()];
  await app.loadGraphData(JSON.parse(JSON.stringify(saved)));
  window.loader = app.graph._nodes[1];
  const fresh = SAID;
  app.nodeOutputs = { ...outputs };
  return fresh;
}""".replace("SAID", SAID)
ENDED = 1500  # milliseconds; a page that tidies up after a job has done so by then


def test_text_stays_after_the_job_once_and_whole_and_is_no_value_of_the_workflow(page, screenshot):
    page.evaluate(RUN)
    page.wait_for_function(CHOSEN)
    page.wait_for_timeout(ENDED)
    screenshot(page, "text")
    text = page.evaluate(CHOSEN)
    assert "steps" in text
    assert page.evaluate(SAID) == [text]
    shown = page.locator(".hyper-sd-text", has_text=text)
    assert shown.count() == 1
    assert page.get_by_text(text).count() <= 2  # here and in the host's own node
    assert shown.evaluate("element => element.scrollHeight <= element.clientHeight + 1")
    assert page.evaluate(f"async () => {GIVEN}") == page.evaluate("window.before")
    assert page.evaluate(BACK) == []
    page.wait_for_function(f"({SAID}).length === 1")
    assert page.evaluate(SAID) == [text]
