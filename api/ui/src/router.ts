/** The pages. Each is a folder of its own and is fetched when it is first seen. */
import { Blend, Clapperboard, Images, LayoutGrid, MessageSquareText, ScanSearch, SlidersHorizontal, Sparkles } from "@lucide/vue";
import type { Component } from "vue";
import { type RouteRecordRaw, createRouter, createWebHashHistory } from "vue-router";

export interface Entry {
  name: string;
  title: string;
  icon: Component;
  /** With the model's id as its last part, where it is about one model. */
  path: string;
  page: () => Promise<unknown>;
}

export const entries: Entry[] = [
  { name: "models", title: "Models", icon: LayoutGrid, path: "/", page: () => import("./pages/models/ModelsPage.vue") },
  { name: "generate", title: "Generate", icon: Sparkles, path: "/generate/:model?", page: () => import("./pages/generate/GeneratePage.vue") },
  { name: "prompt", title: "Prompt", icon: MessageSquareText, path: "/prompt", page: () => import("./pages/prompt/PromptPage.vue") },
  { name: "edit", title: "Edit", icon: SlidersHorizontal, path: "/edit/:model?", page: () => import("./pages/edit/EditPage.vue") },
  { name: "mix", title: "Mix", icon: Blend, path: "/mix/:model?", page: () => import("./pages/mix/MixPage.vue") },
  { name: "walk", title: "Walk", icon: Clapperboard, path: "/walk/:model?", page: () => import("./pages/walk/WalkPage.vue") },
  { name: "project", title: "Project", icon: ScanSearch, path: "/project", page: () => import("./pages/project/ProjectPage.vue") },
  { name: "library", title: "Library", icon: Images, path: "/library", page: () => import("./pages/library/LibraryPage.vue") },
];

const routes: RouteRecordRaw[] = entries.map(({ name, path, page, title }) => ({ name, path, component: page as never, meta: { title } }));

export const router = createRouter({
  history: createWebHashHistory(), // works behind any prefix, and needs nothing of the server
  routes: [...routes, { path: "/:rest(.*)*", redirect: "/" }],
  scrollBehavior: (_to, _from, saved) => saved ?? { top: 0 },
});
