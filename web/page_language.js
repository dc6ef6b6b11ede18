// The language of the page, for words that come neither from the host's own translation nor from locales/.
import { app } from "../../scripts/app.js";

/** Returns whether the page is in Chinese. */
export function isChinese() {
  return String(app.extensionManager?.setting?.get("Comfy.Locale") ?? "en").startsWith("zh");
}
