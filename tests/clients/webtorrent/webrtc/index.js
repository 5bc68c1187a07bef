// The package of this name downloads its binary when it is installed; this one's is an npm package.
import wrtc from '@roamhq/wrtc'

export const { RTCIceCandidate, RTCPeerConnection, RTCSessionDescription } = wrtc
