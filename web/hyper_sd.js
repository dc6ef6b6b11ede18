// What the pack adds to ComfyUI's page: the panel "Hyper-SD models" with its command, what
// its nodes say, and the models of a saved workflow.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { EVENT, models } from "./model_list.js";
import { ModelPanel } from "./model_panel.js";
import { TEXT_EVENT, hearText, showOutputs, showsOutput } from "./node_text.js";
import { describeModels, hasCombo } from "./workflow_models.js";

const TAB = "hyper-sd-models";
const COMMAND = "HyperSD.OpenModels";
const ICON = "pi pi-bolt";
const PATIENCE = 2000; // milliseconds the page waits for the catalogue before it draws the first workflow
let panel = null;

function openPanel() {
  const tabs = app.extensionManager.sidebarTab;
  if (tabs.activeSidebarTabId !== TAB) tabs.toggleSidebarTab(TAB);
}

function render(element) {
  if (panel?.element.parentElement === element) return; // the page asks again whenever it draws the sidebar
  panel?.close();
  panel = new ModelPanel();
  element.style.height = "100%";
  element.replaceChildren(panel.element);
  models.load();
}

function close() {
  panel?.close();
  panel = null;
}

app.registerExtension({
  name: "HyperSD.Models",

  commands: [{ id: COMMAND, label: "Open Hyper-SD models", menubarLabel: "Models", icon: ICON, function: openPanel }],

  menuCommands: [{ path: ["Hyper-SD"], commands: [COMMAND] }],

  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.name.startsWith("HyperSD")) showsOutput(nodeType);
    if (!hasCombo(nodeData)) return;
    const before = nodeType.prototype.onSerialize;
    nodeType.prototype.onSerialize = function (data) {
      before?.apply(this, arguments);
      describeModels(this, data, [...models.rows.values()]);
    };
  },

  nodeCreated(node) {
    if (node.comfyClass !== "HyperSDModelDownload") return;
    const widget = node.widgets?.find((candidate) => candidate.name === "model");
    if (widget) widget.options.getOptionLabel = (id) => models.rows.get(id)?.title ?? id ?? "";
  },

  onNodeOutputsUpdated: showOutputs,

  async setup() {
    app.extensionManager.registerSidebarTab({
      id: TAB,
      icon: ICON,
      title: "Hyper-SD models",
      tooltip: "Hyper-SD models",
      label: "Hyper-SD",
      type: "custom",
      render,
      destroy: close,
    });
    api.addEventListener(TEXT_EVENT, ({ detail }) => hearText(detail));
    api.addEventListener(EVENT, ({ detail }) => models.hear(detail));
    api.addEventListener("reconnected", () => models.load()); // the events in between are lost
    models.addEventListener("arrived", () => app.refreshComboInNodes());
    // A workflow that is drawn before the catalogue is known would count as changed once it is.
    await Promise.race([models.load(), new Promise((go) => setTimeout(go, PATIENCE))]);
  },
});
