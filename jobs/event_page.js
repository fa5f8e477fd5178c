"use strict";
// A button with data-start seeks the video of its article there, and a bar of a timeline does what the button it is for
// does. #<event id> and #<video id>,t=12.3 do so on loading. The filter shows the rows with all of its words.

// Playing.
const still = matchMedia("(prefers-reduced-motion: reduce)");
function choose(item, plays) {
  const article = item.closest("article");
  for (const other of article.querySelectorAll("[aria-current]")) other.removeAttribute("aria-current");
  for (const other of article.querySelectorAll(".on")) other.classList.remove("on");
  item.setAttribute("aria-current", "true");
  article.querySelector(`[data-for="${CSS.escape(item.id)}"]`)?.classList.add("on");
  seek(article, Number(item.dataset.start), plays);
}
function seek(article, seconds, plays) {
  const video = article.querySelector("video");
  if (!video || !Number.isFinite(seconds)) return;
  video.currentTime = seconds;
  if (plays) video.play().catch(() => {});
  else video.preload = "metadata";
}
document.addEventListener("click", (event) => {
  const bar = event.target.closest("[data-for]");
  const item = bar ? document.getElementById(bar.dataset.for) : event.target.closest("[data-start]");
  if (item?.dataset.start) choose(item, true);
});
document.addEventListener("pointerover", (event) => {
  const bar = event.target.closest("[data-for]");
  if (bar && !bar.title) bar.title = document.getElementById(bar.dataset.for)?.textContent ?? "";
});
document.addEventListener("play", (event) => {
  for (const video of document.querySelectorAll("video")) if (video !== event.target) video.pause();
}, true);
document.addEventListener("timeupdate", (event) => {
  const article = event.target.closest("article");
  const now = article.querySelector(".now");
  now.hidden = false;
  now.style.left = `${100 * (event.target.currentTime - article.dataset.late) / article.dataset.seconds}%`;
}, true);
document.addEventListener("error", (event) => {
  const video = event.target;
  if (video.tagName !== "VIDEO") return;
  const words = document.createElement("p");
  words.className = "reason";
  words.setAttribute("role", "alert");
  words.textContent = "It cannot be played here: either it was moved, or this browser does not know its format.";
  video.replaceWith(words);
}, true);

// Posters beyond the first fifty are read when their video comes near: browsers would read thousands at once.
const near = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    const video = target.querySelector("video"); // none where it could not be played
    if (video) video.poster = video.dataset.poster;
    near.unobserve(target);
  }
}, { rootMargin: "100%" });
for (const video of document.querySelectorAll("[data-poster]")) near.observe(video.closest("article"));

// The filter.
const box = document.getElementById("filter");
const hits = document.getElementById("hits");
const everything = hits.textContent;
const plain = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();
const count = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;
let rows;
function readPage() {
  return Array.from(document.querySelectorAll("article"), (article) => {
    const bars = new Map(Array.from(article.querySelectorAll("[data-for]"), (bar) => [bar.dataset.for, bar]));
    const about = Array.from(article.querySelectorAll("h2 bdi, .reason"), (part) => part.textContent).join(" ");
    const items = Array.from(article.querySelectorAll(".row"), (row) => {
      return { row: row.parentElement, bar: bars.get(row.id), text: plain(row.querySelector(".words").textContent) };
    });
    return { article, about: plain(about), items, parts: Array.from(article.querySelectorAll(".part")) };
  });
}
function filter() {
  rows ??= readPage();
  const words = plain(box.value).split(/\s+/).filter(Boolean);
  const fits = (text, about) => words.every((word) => text.includes(word) || about.includes(word));
  let events = 0;
  let videos = 0;
  for (const { article, about, items, parts } of rows) {
    let shown = 0;
    for (const { row, bar, text } of items) {
      row.hidden = !fits(text, about);
      if (bar) bar.hidden = row.hidden;
      shown += !row.hidden;
    }
    for (const part of parts) part.hidden = !part.querySelector("li:not([hidden])");
    article.hidden = !shown && !fits("", about);
    events += shown;
    videos += !article.hidden;
  }
  const found = `${count(events, hits.dataset.kind)} in ${count(videos, "video")}`;
  hits.textContent = words.length ? found : everything;
}
let waiting;
box.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(filter, 150);
});

// Links into the page.
function show(target, frames) {
  // What comes into view is laid out then, and may move the target on.
  target.scrollIntoView({ block: "center" });
  if (frames) requestAnimationFrame(() => show(target, frames - 1));
}
function follow() {
  const [id, time] = decodeURIComponent(location.hash.slice(1)).split(",t=");
  const target = id && document.getElementById(id);
  if (!target) return;
  if (target.closest("[hidden]")) {
    box.value = "";
    filter();
  }
  show(target, 4);
  if (target.dataset.start) {
    target.focus({ preventScroll: true });
    choose(target, !still.matches);
  } else if (time) seek(target.closest("article"), Number(time), !still.matches);
}
addEventListener("hashchange", follow);
follow();
