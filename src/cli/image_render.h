// A checkpoint's contents as text and as JSON. The JSON names are part of the interface.
#ifndef GODWIT_CLI_IMAGE_RENDER_H_
#define GODWIT_CLI_IMAGE_RENDER_H_

#include <string>

#include "cli/image_contents.h"
#include "cli/json.h"

namespace godwit::cli {

std::string image_text(const Image& image, bool verbose);
void image_json(Json& json, const Image& image);

}  // namespace godwit::cli

#endif  // GODWIT_CLI_IMAGE_RENDER_H_
