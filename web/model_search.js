// Finding rows of the panel by a few words, as models/search.py does for the command line and A1111.

const LONGEST = 200; // characters that are looked at
// Chinese has no spaces between words, and people write "4步LoRA" as well as "4 步 LoRA".
const BORDER = /(?<=[\u4e00-\u9fff])(?=[a-z0-9])|(?<=[a-z0-9])(?=[\u4e00-\u9fff])|[\u3001\u3002\uff08\uff09\uff0c\uff1a\uff1b]/g;
const STEPS = /(?<!\S)([0-9]+)[ -]*(?:steps?|步)(?!\S)/g;

/**
 * Tells whether every word fits a row: "lightning 4", "sd15 pcm", "4步 完整模型". A whole number is a number of steps.
 * Args: row, heading: as the routes send them; chinese: their texts with the Chinese of each.
 */
export function isFound(row, heading, asked, chinese) {
  const translated = [row.title, heading].map((text) => chinese[text] ?? text);
  const said = [row.title, heading, ...translated, row.method, row.family, row.models.name, row.id].join(" ").toLowerCase();
  const [fewest, most] = row.steps;
  const words = asked.slice(0, LONGEST).toLowerCase().replace(BORDER, " ").replace(STEPS, "$1").split(/\s+/).filter(Boolean);
  return words.every((word) => {
    if (!/^[0-9]+$/.test(word)) return said.includes(word);
    return most ? fewest <= +word && +word <= most : new RegExp(`(?<![\\w.])${word}(?![\\w.])`).test(said);
  });
}
