// Finding rows of the panel by a few words, as models/search.py does for the command line and A1111.

const LONGEST = 200; // characters that are looked at
const STEPS = /(?<!\S)([0-9]+)[ -]*(?:steps?|步)(?!\S)/g;

/** Tells whether every word fits a row: "lightning 4", "sd15 pcm". A whole number is a number of steps. */
export function isFound(row, heading, asked) {
  const said = [row.title, row.method, row.family, heading, row.models.name, row.id].join(" ").toLowerCase();
  const [fewest, most] = row.steps;
  const words = asked.slice(0, LONGEST).toLowerCase().replace(STEPS, "$1").split(/\s+/).filter(Boolean);
  return words.every((word) => {
    if (!/^[0-9]+$/.test(word)) return said.includes(word);
    return most ? fewest <= +word && +word <= most : new RegExp(`(?<![\\w.])${word}(?![\\w.])`).test(said);
  });
}
