// What a saved workflow tells of its models: with it the host's own missing-model dialog knows where a file comes from.

/** Tells whether a node has a list to choose from, as every loader has. */
export function hasCombo(nodeData) {
  const inputs = { ...nodeData.input?.required, ...nodeData.input?.optional };
  return Object.values(inputs).some(([type]) => Array.isArray(type) || type === "COMBO");
}

function isFileOf(row, value) {
  const [first, ...rest] = value.split(/[\\/]/);
  // The one-step loader's list has the folder in front, under which the host would never find the file: it has an error of its own.
  if (rest.length && first === row.models.directory) return false;
  const name = rest.at(-1) ?? first;
  return value === row.file || name.toLowerCase() === row.models.name.toLowerCase();
}

/** Writes into a serialised node's properties.models the catalogue files its widgets name; other entries stay. */
export function describeModels(node, data, rows) {
  const combos = (node.widgets ?? []).filter((widget) => widget.type === "combo" && typeof widget.value === "string");
  const described = (value) => rows.filter((row) => isFileOf(row, value)).map((row) => ({ ...row.models, name: value }));
  const named = combos.flatMap((widget) => described(widget.value));
  const before = data.properties?.models ?? [];
  if (!named.length && !before.length) return;
  const catalogued = new Set(rows.map((row) => row.models.url));
  const found = [...before.filter((model) => !catalogued.has(model.url)), ...named];
  data.properties = { ...data.properties, models: found };
  if (!found.length) delete data.properties.models;
}
