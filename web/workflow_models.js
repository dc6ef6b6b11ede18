// What a saved workflow tells of its models: with it the host's own missing-model dialog knows where a catalogue file comes from.

/** Tells whether a node has a list to choose from, as every loader has. */
export function hasCombo(nodeData) {
  const inputs = { ...nodeData.input?.required, ...nodeData.input?.optional };
  return Object.values(inputs).some(([type]) => Array.isArray(type) || type === "COMBO");
}

function isFileOf(row, value) {
  const name = value.split(/[\\/]/).pop();
  return value === row.file || name.toLowerCase() === row.models.name.toLowerCase();
}

/** Writes into a serialised node's properties.models which catalogue files its widgets name; other people's entries stay. */
export function describeModels(node, data, rows) {
  const values = (node.widgets ?? []).filter((w) => w.type === "combo" && typeof w.value === "string").map((w) => w.value);
  const named = values.flatMap((value) => rows.filter((row) => isFileOf(row, value)).map((row) => ({ ...row.models, name: value })));
  const before = data.properties?.models ?? [];
  if (!named.length && !before.length) return;
  const catalogued = new Set(rows.map((row) => row.models.url));
  const found = [...before.filter((model) => !catalogued.has(model.url)), ...named];
  data.properties = { ...data.properties, models: found };
  if (!found.length) delete data.properties.models;
}
