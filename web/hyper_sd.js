// What the pack adds to ComfyUI's page: the tabs "Hyper-SD models" and "Hyper-SD votes" with their commands, what
// its nodes say, and the models of a saved workflow.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { EVENT, models } from "./model_list.js";
import { ModelPanel } from "./model_panel.js";
import { said, words } from "./model_words.js";
import { TEXT_EVENT, hearText, showOutputs, showsOutput } from "./node_text.js";
import { VotePanel } from "./vote_panel.js";
import { words as voteWords } from "./vote_words.js";
import { describeModels, hasCombo } from "./workflow_models.js";

const TAB = "hyper-sd-models";
const COMMAND = "HyperSD.OpenModels";
const VOTES = { tab: "hyper-sd-votes", command: "HyperSD.OpenVotes", icon: "pi pi-thumbs-up" };
const ICON = "pi pi-bolt";
const PATIENCE = 2000; // milliseconds the page waits for the catalogue before it draws the first workflow
let panel = null;
let votes = null;

function openTab(tab) {
  const tabs = app.extensionManager.sidebarTab;
  if (tabs.activeSidebarTabId !== tab) tabs.toggleSidebarTab(tab);
}

const openVotes = () => openTab(VOTES.tab);

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

function renderVotes(element) {
  if (votes?.element.parentElement === element) return;
  votes = new VotePanel();
  element.style.height = "100%";
  element.replaceChildren(votes.element);
}

app.registerExtension({
  name: "HyperSD.Models",

  // The words as functions: the page's language is not known yet.
  commands: [
    { id: COMMAND, label: () => words().open, menubarLabel: () => words().menu, icon: ICON, function: () => openTab(TAB) },
    {
      id: VOTES.command,
      label: () => voteWords().open,
      menubarLabel: () => voteWords().tab,
      icon: VOTES.icon,
      function: openVotes,
    },
  ],

  menuCommands: [{ path: ["Hyper-SD"], commands: [COMMAND, VOTES.command] }],

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
    if (widget) widget.options.getOptionLabel = (id) => said(models.rows.get(id)?.title) ?? id ?? "";
  },

  onNodeOutputsUpdated: showOutputs,

  async setup() {
    app.extensionManager.registerSidebarTab({
      id: TAB,
      icon: ICON,
      title: words().title,
      tooltip: words().title,
      label: "Hyper-SD",
      type: "custom",
      render,
      destroy: close,
    });
    app.extensionManager.registerSidebarTab({
      id: VOTES.tab,
      icon: VOTES.icon,
      title: voteWords().title,
      tooltip: voteWords().title,
      label: voteWords().tab,
      type: "custom",
      render: renderVotes,
      destroy: () => (votes = null),
    });
    api.addEventListener(TEXT_EVENT, ({ detail }) => hearText(detail));
    api.addEventListener(EVENT, ({ detail }) => models.hear(detail));
    api.addEventListener("reconnected", () => models.load()); // the events in between are lost
    models.addEventListener("arrived", () => app.refreshComboInNodes());
    // A workflow that is drawn before the catalogue is known would count as changed once it is.
    await Promise.race([models.load(), new Promise((go) => setTimeout(go, PATIENCE))]);
  },
});
