// What the tab "Hyper-SD votes" says, in the page's language.
import { isChinese } from "./page_language.js";

const ENGLISH = {
  title: "Hyper-SD votes",
  open: "Open Hyper-SD votes",
  tab: "Votes",
  again: "Look again",
  collection: "Collection",
  none: "Nothing is collected yet. Wire pictures into the node Hyper-SD Vote and run it.",
  question: "Which picture do you like better?",
  left: "Left",
  right: "Right",
  tie: "No difference",
  skip: "Skip",
  undo: "Undo",
  keys: "Keys, once a button here has the focus: ← left, → right, ↓ no difference, S skip, U undo.",
  done: "All pairs have a vote. Draw more, or look at the results.",
  results: "Show results",
  resultsNote: "Look only when you are done: names are no longer hidden then.",
  progress: (voted, pairs) => `${voted} of ${pairs}`,
  first: "first picture",
  second: "second picture",
  damaged: "This collection cannot be read:",
};
const CHINESE = {
  title: "Hyper-SD 投票",
  open: "打开 Hyper-SD 投票",
  tab: "投票",
  again: "刷新",
  collection: "收集",
  none: "还没有收集任何图片。请把图片接到 Hyper-SD Vote 节点并运行。",
  question: "你更喜欢哪一张？",
  left: "左边",
  right: "右边",
  tie: "没有区别",
  skip: "跳过",
  undo: "撤销",
  keys: "点过这里的按钮之后可用键盘：← 左，→ 右，↓ 没有区别，S 跳过，U 撤销。",
  done: "所有图片对都已投票。可以再画一些，或查看结果。",
  results: "显示结果",
  resultsNote: "请在投完之后再看：结果会显示名称。",
  progress: (voted, pairs) => `${voted} / ${pairs}`,
  first: "第一张",
  second: "第二张",
  damaged: "无法读取这个收集：",
};

/** Returns the words of the page's language; English where it is neither. */
export function words() {
  return isChinese() ? CHINESE : ENGLISH;
}
