// What the panel "Hyper-SD models" says, in the page's language. Titles, licences and notes come from the server in both
// languages, problems in English alone.
import { models } from "./model_list.js";
import { isChinese } from "./page_language.js";

const ENGLISH = {
  title: "Hyper-SD models",
  open: "Open Hyper-SD models",
  menu: "Models",
  again: "Look again",
  search: "Search by name, method, family, steps",
  example: "Search: lightning 4, sd15 pcm",
  more: "More few-step models",
  comma: ", ",
  found: (count) => `${count} found`,
  nothing: (asked) => `Nothing found for “${asked}”. Try fewer words, such as “lightning 4” or “sd15 pcm”.`,
  count: (ready, all) => `${ready} of ${all} ready`,
  downloading: (count) => `${count} downloading`,
  ownCatalogue: "Your own catalogue file is left out:",
  sizeUnknown: "size is asked at the download",
  licence: "licence",
  licenceGroup: "Licence",
  read: "Read the licence",
  accept: "Accept and download",
  notNow: "Not now",
  stopping: "Stopping",
  of: (done, all) => `${done} of ${all}`,
  left: (time) => `${time} left`,
  damaged: (problem) => `The file in your folder cannot be used: ${problem}. It will be renamed, not deleted.`,
  states: {
    missing: "not downloaded",
    partial: "partly here",
    downloading: "downloading",
    verifying: "checking",
    ready: "ready",
    corrupt: "damaged",
  },
  buttons: {
    missing: "Download",
    partial: "Resume",
    downloading: "Cancel",
    verifying: "Cancel",
    ready: "Ready",
    corrupt: "Set aside and download again",
  },
};
const CHINESE = {
  title: "Hyper-SD 模型",
  open: "打开 Hyper-SD 模型",
  menu: "模型",
  again: "刷新",
  search: "按名称、方法、系列、步数搜索",
  example: "搜索：lightning 4、小CFG 4步",
  more: "其他少步数模型",
  comma: "、",
  found: (count) => `找到 ${count} 个`,
  nothing: (asked) => `没有找到“${asked}”。请减少关键词，例如“lightning 4”或“小CFG 4步”。`,
  count: (ready, all) => `${ready} / ${all} 已就绪`,
  downloading: (count) => `${count} 个正在下载`,
  ownCatalogue: "你自己的目录文件未被采用：",
  sizeUnknown: "大小在下载时查询",
  licence: "许可证",
  licenceGroup: "许可证",
  read: "阅读许可证",
  accept: "接受并下载",
  notNow: "暂不",
  stopping: "正在停止",
  of: (done, all) => `${done} / ${all}`,
  left: (time) => `剩余 ${time}`,
  damaged: (problem) => `你文件夹中的文件无法使用：${problem}。它只会被改名，不会被删除。`,
  states: {
    missing: "未下载",
    partial: "部分下载",
    downloading: "正在下载",
    verifying: "正在校验",
    ready: "已就绪",
    corrupt: "已损坏",
  },
  buttons: {
    missing: "下载",
    partial: "继续",
    downloading: "取消",
    verifying: "取消",
    ready: "已就绪",
    corrupt: "移到一旁并重新下载",
  },
};

/** Returns the words of the page's language; English where it is neither. */
export function words() {
  return isChinese() ? CHINESE : ENGLISH;
}

/** Returns a text of the server in the page's language; as it came where there is no other. */
export function said(text) {
  return (isChinese() && models.chinese[text]) || text;
}
