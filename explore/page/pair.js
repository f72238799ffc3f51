// Passes the view of each of two pages on to the other one.
"use strict";

const frames = [...document.querySelectorAll("iframe")];

for (const frame of frames) {
  const greet = () => frame.contentWindow.postMessage("follow", "*");
  frame.onload = greet;
  greet(); // the frame may have loaded before this script
}

window.onmessage = (event) => {
  const from = frames.findIndex((frame) => frame.contentWindow === event.source);
  if (from >= 0) frames[1 - from].contentWindow.postMessage(event.data, "*");
};
