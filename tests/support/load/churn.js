// Strings and objects that live for a while and die.
const kept = new Map();
let turn = 0;
console.log("ready");
setInterval(() => {
  for (let i = 0; i < 500; i++, turn++) {
    kept.set(turn % 20000, { name: "entry " + turn, values: [turn, turn * 2, String(turn)] });
  }
}, 2);
