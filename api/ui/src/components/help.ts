import { reactive } from "vue";

export const help = reactive({ open: false });
