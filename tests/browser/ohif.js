// What the tests ask of OHIF, in its own page: everything is read from what the viewer shows people from.
window.ask = {
  displaySet(seriesUid) {
    const sets = window.services?.displaySetService.getActiveDisplaySets() ?? [];
    return sets.find(set => set.SeriesInstanceUID === seriesUid);
  },

  viewport() {
    const id = window.services.viewportGridService.getState().activeViewportId;
    return window.cornerstone?.getEnabledElementByViewportId(id)?.viewport;
  },

  // whether the images of a series are on the screen
  shows(seriesUid) {
    const viewport = window.services && this.displaySet(seriesUid) && this.viewport();
    if (!viewport || viewport.viewportStatus !== 'rendered') return false;
    return this.instance(viewport.getCurrentImageId())?.SeriesInstanceUID === seriesUid;
  },

  instance(imageId) {
    return imageId && window.cornerstone.metaData.get('instance', imageId);
  },

  segmentation(seriesUid) {
    const set = this.displaySet(seriesUid);
    return set && window.services.segmentationService.getSegmentation(set.displaySetInstanceUID);
  },

  // the segmentation as the viewport draws it: colour and visibility of each segment
  drawn(seriesUid) {
    const set = this.displaySet(seriesUid);
    const viewportId = window.services.viewportGridService.getState().activeViewportId;
    const asked = { segmentationId: set.displaySetInstanceUID };
    return window.services.segmentationService.getSegmentationRepresentations(viewportId, asked)[0];
  },

  hydrated(seriesUid) {
    const set = this.displaySet(seriesUid);
    const asked = document.querySelector("[data-cy=yes-hydrate-btn]");
    const loaded = set?.isLoaded && !asked && this.segmentation(seriesUid) && this.drawn(seriesUid);
    return Boolean(loaded && this.atRest());
  },

  // whether this is the same viewport since a while: that of the question is replaced by one of the answer
  atRest() {
    const viewport = this.viewport();
    if (viewport !== this.seen || viewport?.viewportStatus !== 'rendered') {
      this.seen = viewport;
      this.seenAt = performance.now();
    }
    return performance.now() - this.seenAt > 2000;
  },

  names(seriesUid) {
    const segments = Object.values(this.segmentation(seriesUid).segments);
    return Object.fromEntries(segments.map(segment => [segment.segmentIndex, segment.label]));
  },

  colours(seriesUid) {
    const segments = Object.entries(this.drawn(seriesUid).segments);
    return Object.fromEntries(segments.map(([number, segment]) => [number, segment.color.slice(0, 3)]));
  },

  // the label map by SOP Instance UID of the image it lies on: rows, columns, bytes in base64
  labels(seriesUid) {
    const { imageIds } = this.segmentation(seriesUid).representationData.Labelmap;
    const planes = imageIds.map(imageId => {
      const image = window.cornerstone.cache.getImage(imageId);
      const numbers = image.voxelManager.getScalarData();
      if (numbers.some(number => number > 255)) throw new Error('a segment number above 255');
      let text = '';
      for (const number of numbers) text += String.fromCharCode(number);
      const uid = this.instance(image.referencedImageId).SOPInstanceUID;
      return [uid, { rows: image.rows, columns: image.columns, numbers: btoa(text) }];
    });
    return Object.fromEntries(planes);
  },

  // asked again and again: the jump of the viewer to a segment it has just opened may come after ours
  scrolledTo(sopInstanceUid) {
    const viewport = this.viewport();
    const index = viewport.getImageIds().findIndex(id => this.instance(id).SOPInstanceUID === sopInstanceUid);
    if (index < 0) throw new Error('the viewport has no such image');
    if (this.imageOnScreen() === sopInstanceUid) return true;
    viewport.setImageIdIndex(index);
    return false;
  },

  imageOnScreen() {
    return this.instance(this.viewport().getCurrentImageId()).SOPInstanceUID;
  },

  show(seriesUid, visible) {
    const viewportId = window.services.viewportGridService.getState().activeViewportId;
    const { segmentationId, type } = this.drawn(seriesUid);
    const config = window.cornerstoneTools.segmentation.config;
    config.visibility.setSegmentationRepresentationVisibility(viewportId, { segmentationId, type }, visible);
  },

  fillAlpha() {
    const viewportId = window.services.viewportGridService.getState().activeViewportId;
    return window.services.segmentationService.getStyle({ type: 'Labelmap', viewportId }).fillAlpha;
  },

  // where on the canvas, in CSS pixels, the centres of these pixels [column, row] of the image on the screen lie
  places(pixels) {
    const viewport = this.viewport();
    const { imageData } = viewport.getImageData();
    return pixels.map(([column, row]) => viewport.worldToCanvas(imageData.indexToWorld([column, row, 0])));
  },
};
