// Package layers keeps artifacts unpacked, so that a build's dependencies can be
// laid into its workspace without copying: as layers of an overlay, below the
// one that the workspace writes to.
//
// A layer is what the installation of one artifact over one root changes there
// (see extract.Install: where the root has /lib as a link to usr/lib, the
// artifact's /lib/x is the layer's usr/lib/x). It is made once, in a short-lived
// process that is confined to namespaces of its own and to an overlay over the
// root, and is only read from then on. Layers are a cache: whatever is wrong
// with one, the artifact can be streamed into the workspace instead.
package layers
