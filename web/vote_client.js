// The collected comparisons as this page knows them: what the routes of nodes/vote_routes.py tell and take.
import { api } from "../../scripts/api.js";

const ROUTES = "/hyper_sd/votes";

async function ask(path, fields) {
  const options = fields && {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(fields),
  };
  const answer = await api.fetchApi(ROUTES + path, options ?? { cache: "no-store" });
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error);
  return content;
}

const asked = (name) => `comparison=${encodeURIComponent(name)}`;

export const comparisons = async () => (await ask("")).comparisons;
export const nextPair = (name) => ask(`/next?${asked(name)}`);
export const results = async (name) => (await ask(`/results?${asked(name)}`)).text;
export const vote = (name, pair, choice, milliseconds) => ask("/vote", { id: name, pair, choice, milliseconds });
export const undo = (name) => ask("/undo", { id: name });

/** Returns the address of a picture by its id, which is random and tells nothing. */
export const pictureAddress = (name, id) => api.apiURL(`${ROUTES}/picture?${asked(name)}&id=${encodeURIComponent(id)}`);
