"use strict";
// Every button with data-start seeks the video of its section there. #<event id> and #<video id>,t=12.3 do so on loading.
function play(section, seconds) {
  for (const other of section.querySelectorAll("button.on")) other.classList.remove("on");
  for (const button of section.querySelectorAll("button[data-start]")) {
    if (Number(button.dataset.start) === seconds) button.classList.add("on");
  }
  const video = section.querySelector("video");
  if (!video) return;
  video.currentTime = seconds;
  video.play().catch(() => {});
}
document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-start]");
  if (button) play(button.closest("section"), Number(button.dataset.start));
});
function follow() {
  const [id, time] = decodeURIComponent(location.hash.slice(1)).split(",t=");
  const target = id && document.getElementById(id);
  if (!target) return;
  target.scrollIntoView({ block: "center" });
  const seconds = Number(time ?? target.dataset.start);
  if (Number.isFinite(seconds)) play(target.closest("section"), seconds);
}
addEventListener("hashchange", follow);
follow();
