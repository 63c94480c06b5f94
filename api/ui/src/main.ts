import { createApp } from "vue";
import App from "./App.vue";
import { router } from "./router";
import { loadKept } from "./state/kept";
import { load } from "./state/server";
import { restore } from "./state/session";
import { toast } from "./state/toasts";
import "./style.css";

function begin(): void {
  load().catch((error: Error) => toast(error.message, { tone: "bad", seconds: 3600, action: { name: "Try again", run: begin } }));
}

restore();
begin();
void loadKept();
createApp(App).use(router).mount("#app");
