// `ABSENT` of krasis-ops: in the place of an expert that somebody else has.
#pragma once

#define ABSENT 0xffffffffu
