// The player that ComfyUI's page puts on core's Load Audio alone, for MultiTalk Load Audio too: the page's upload button
// of sounds fills a widget of this name, which stands before it.
import { app } from '../../../scripts/app.js';

app.registerExtension({
  name: 'MultiTalk.AudioPlayer',
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.name !== 'MultiTalkLoadAudio') return;
    const { audio, ...rest } = nodeData.input.required;
    nodeData.input.required = { audio, audioUI: ['AUDIO_UI', {}], ...rest };
  },
});
